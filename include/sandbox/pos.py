"""The tills of the stores: no API at all. Every night at 01:00 the back office drops the day's files into a folder.

First everything up to the anchor day, then one set per business day: 小票 (receipts, GBK CSV), 明细 (their lines, UTF-8 CSV
with a mark), 退货 (returns that were asked for or decided, Excel), 会员 (members whose figures changed, UTF-8 CSV). A file
appears under its name when it is whole, and `<name>.done` after it. The same world writes the same bytes.
"""

import csv
import io
import zipfile
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, ClassVar

import openpyxl

from .clock import DAY, HOUR, OFFSET, day_of, shop_time
from .faults import Fault
from .shops import Customer, Sale, ShopRefund
from .state import World
from .wire import Answer, Request, json_answer

WRITTEN_AT = HOUR  # after midnight
STATES = {"requested": "待审核", "settled": "已退款", "refused": "已拒绝"}
NAMES = ("小票_", "明细_", "退货_", "会员_")
STORES = ("人民路店", "中山路店", "夜市街店")
ZIP_TIME = (2020, 1, 1, 0, 0, 0)  # of every part of a workbook, so that equal content is equal bytes


class Pos:
    platform: ClassVar[str] = "pos"
    prefixes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, world: World) -> None:
        self.world = world
        world.tills = self

    # ------------------------------------------------------------------------------------------------ the platform's part

    def method(self, request: Request) -> str:
        return "none"

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        return json_answer({"error": "the tills have no API; they write files (pos.folder of access.json)"}, 404)

    def access(self, base_url: str) -> dict[str, Any]:
        return {"folder": str(self.folder)}

    def reset(self) -> None:
        """No file of ours in the folder, also none that was taken; the next drop at 01:00 of the day after the anchor."""
        for path in self.folder.rglob("*"):
            if path.is_file() and path.name.lstrip(".").startswith(NAMES):
                path.unlink()
        for path in (self.folder / "archive", self.folder):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.dropped_until = 0  # what happened before this instant is in a set of an ended day
        self._plan(self.world.history.end + WRITTEN_AT)

    @property
    def folder(self) -> Path:
        return self.world.drop_folder

    # ------------------------------------------------------------------------------------------------------------- drops

    def _plan(self, at: int) -> None:
        self.world.later(at, lambda: self._nightly(at))

    def _nightly(self, at: int) -> None:
        self._close_days(at)
        self._plan(at + DAY)

    def _close_days(self, now: float) -> list[str]:
        """One set for every business day that has ended and has none yet."""
        names = []
        end = self.dropped_until + DAY if self.dropped_until else self.world.history.end
        while end <= now:
            names += self._drop(day_of(end - 1), self.dropped_until, end)
            self.dropped_until, end = end, end + DAY
        return names

    def write(self) -> dict[str, list[str]]:
        """Control: the sets of ended days, and one of today as far as it has come, which the night's will replace."""
        now = self.world.now()
        names = self._close_days(now)
        if now > self.dropped_until:
            names += self._drop(day_of(now), self.dropped_until, int(now) + 1)
        return {"files": names}

    def _drop(self, day: date, start: int, end: int) -> list[str]:
        """The files of what happened in [start, end), named after `day`."""
        shop, now = self.world.shops["pos"], end - 1
        sales = shop.created_between(start, now, now)[::-1]
        refunds = shop.refunds_changed_between(start, now, now)[::-1]
        members = [one for one in shop.customers(now) if start <= max(one.modified(now), one.joined) < end]
        contents = {
            f"小票_{day:%Y%m%d}.csv": self._receipts(sales).encode("gb18030"),
            f"明细_{day:%Y%m%d}.csv": self._lines(sales).encode("utf-8-sig"),
            f"退货_{day:%Y%m%d}.xlsx": self._returns(refunds, now),
            f"会员_{day:%Y%m%d}.csv": self._members(members, now).encode(),
        }
        for name, content in contents.items():
            place, part = self.folder / name, self.folder / f".{name}.part"
            part.write_bytes(content)
            part.replace(place)
            (self.folder / f"{name}.done").touch()
        return list(contents)

    # ------------------------------------------------------------------------------------------------------------- files

    def _receipts(self, sales: Sequence[Sale]) -> str:
        rows = [
            (
                number, f'="{sale.order_id}"', STORES[sale.order_id % len(STORES)], _clock(sale.created), self._card(sale),
                len(sale.lines), _money(sale.goods), _money(sale.discount), _money(sale.paid_amount), "已完成",
            )
            for number, sale in enumerate(sales, start=1)
        ]  # fmt: skip
        header = ("序号", "小票号", "门店", "交易时间", "会员卡号", "行数", "应收", "优惠", "实收", "状态")
        total = (
            "合计",
            "",
            "",
            "",
            "",
            "",
            _money(sum(s.goods for s in sales)),
            "",
            _money(sum(s.paid_amount for s in sales)),
            "",
        )
        return _table([("夜市门店销售日报", *[""] * 9), header, *rows, total])

    def _lines(self, sales: Sequence[Sale]) -> str:
        rows = []
        for sale in sales:
            for position, line in enumerate(sale.lines, start=1):
                item = self.world.items[line.item]
                rows.append(
                    (
                        sale.order_id,
                        position,
                        item.num_iid,
                        item.code,
                        item.title,
                        _plain(line.price),
                        line.num,
                        _plain(line.paid),
                    )
                )
        return _table([("小票号", "行号", "商品编码", "货号", "商品名称", "单价", "数量", "实付"), *rows])

    def _returns(self, refunds: Sequence[ShopRefund], now: float) -> bytes:
        book = openpyxl.Workbook()
        sheet = book.active
        assert sheet is not None
        sheet.title = "退货单"
        sheet.append(["退货单号", "小票号", "行号", "数量", "退款金额", "申请时间", "处理时间", "状态"])
        for refund in refunds:
            decided = refund.settled if refund.settled is not None and refund.settled <= now else None
            sheet.append(
                [
                    str(refund.refund_id), str(refund.sale.order_id), refund.line + 1, refund.num, refund.amount / 100,
                    _wall(refund.created), _wall(decided) if decided else None, STATES[refund.state(now) or "requested"],
                ]
            )  # fmt: skip
        book.properties.creator = "POS"
        book.properties.created = book.properties.modified = datetime(2020, 1, 1)  # noqa: DTZ001 - Excel knows no zones
        return _same_bytes(book)

    def _members(self, members: Sequence[Customer], now: float) -> str:
        rows = []
        for member in members:
            last = member.last_order(now)
            rows.append(
                (
                    member.number, member.person.name, member.person.phone, f"V{member.level}", member.points(now),
                    member.order_count(now), _plain(member.spent(now)), _clock(member.joined), _clock(last) if last else "",
                )
            )  # fmt: skip
        return _table(
            [("会员卡号", "姓名", "手机号", "等级", "积分", "消费次数", "消费金额", "入会时间", "最近消费"), *rows]
        )

    def _card(self, sale: Sale) -> str:
        customer = self.world.shops["pos"].customer_of(sale.person) if sale.person else None
        return str(customer.number) if customer else ""


def _clock(at: int) -> str:
    """2026/3/14 21:05:09, as tills write it: no zeros before month and day."""
    text = shop_time(at)
    return f"{text[:4]}/{int(text[5:7])}/{int(text[8:10])} {text[11:]}"


def _wall(at: int) -> datetime:
    return datetime.fromtimestamp(at + OFFSET, UTC).replace(tzinfo=None)


def _money(fen: int) -> str:
    return f"￥{fen // 100:,}.{fen % 100:02d}"


def _plain(fen: int) -> str:
    return f"{fen // 100}.{fen % 100:02d}"


def _table(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue()


def _same_bytes(book: openpyxl.Workbook) -> bytes:
    """The workbook without the times at which its parts were written."""
    first, second = io.BytesIO(), io.BytesIO()
    book.save(first)
    with zipfile.ZipFile(first) as source, zipfile.ZipFile(second, "w", zipfile.ZIP_DEFLATED) as target:
        for name in sorted(source.namelist()):
            content = source.read(name)
            if name == "docProps/core.xml":  # openpyxl writes the present into it when it saves
                content = (
                    content[: content.index(b"<dcterms:modified")]
                    + content[content.index(b"</dcterms:modified>") + 19 :]
                )
            target.writestr(zipfile.ZipInfo(name, ZIP_TIME), content, zipfile.ZIP_DEFLATED)
    return second.getvalue()
