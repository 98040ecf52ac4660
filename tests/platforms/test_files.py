"""Files of strangers: whatever their shape, good rows reach core, bad ones quarantine with file and line, nothing waits unseen."""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncssh
import openpyxl
import psycopg
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nightmarket import dates, landing, mapping
from nightmarket import settings as settings_module
from nightmarket.landing import LandingSummary
from nightmarket.platforms import files
from nightmarket.platforms.base import AuthError, BadPayload, NotFound, Plan, Transport
from nightmarket.privacy import Tokenizer
from nightmarket.settings import ConfigError, Credentials
from nightmarket.warehouse import Row

NOW = "2026-03-15T02:30:00+08:00"
Declare = Callable[..., Path]


@pytest.fixture
def declare(
    environment: str, set_clock: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Declare:
    """Make sources.yaml with one source `till` of these tables, and its folder."""
    set_clock(NOW)
    folder = tmp_path / "drop"
    folder.mkdir()
    monkeypatch.setenv("AIRFLOW_CONN_TILL", f'{{"conn_type": "nightmarket_files", "extra": {{"folder": "{folder}"}}}}')

    def write(text: str, *, currency: str = "CNY", **options: Any) -> Path:
        tables = yaml.safe_load(text)
        block = {
            "platform": "files", "kind": "shop", "name": "till", "conn_id": "till", "currency_code": currency,
            "streams": {name: {} for name in tables},
            "options": {"stable_seconds": 0, "tables": tables, **options},
        }  # fmt: skip
        config = tmp_path / "config"
        config.mkdir(exist_ok=True)
        (config / "sources.yaml").write_text(yaml.safe_dump({"sources": {"till": block}}, allow_unicode=True))
        monkeypatch.setenv("NIGHTMARKET_CONFIG_DIR", str(config))
        settings_module.get_settings.cache_clear()
        return folder

    return write


def land(stream: str = "orders", **options: Any) -> LandingSummary:
    return landing.land("till", stream, run_id="r", until=options.pop("until", dates.now()), **options)


def night(*streams: str) -> dict[str, LandingSummary]:
    summaries = {stream: land(stream) for stream in streams or ("orders",)}
    mapping.map_source("till", run_id="r")
    return summaries


def rows(db: psycopg.Connection[Row], query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in db.execute(query, parameters).fetchall()]  # type: ignore[arg-type]


def rejects(db: psycopg.Connection[Row]) -> list[str]:
    return [row[0] for row in rows(db, "SELECT reason FROM raw.rejects WHERE resolved_at IS NULL ORDER BY reason")]


def left(folder: Path) -> list[str]:
    """What still stands in the folder itself."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_file())


# ------------------------------------------------------------------------------------------ three strangers, YAML only
CHINESE = """
orders:
  file: 销售明细_{date}.csv
  encoding: gbk
  header_row: 2
  skip_like: ^(合计|小计)
  fill_down: [订单编号, 下单时间, 订单状态, 实付金额, 手机号, 收货人]
  columns:
    order_id: 订单编号
    status: 订单状态
    created_at: 下单时间
    paid_amount: 实付金额
    phone: 手机号
    name: 收货人
  statuses: {交易成功: finished, 已付款: paid, 待付款: unpaid, 已退款: refunded}
  keep: [序号]
  lines:
    columns:
      product_id: 商品编码
      title: 商品名称
      unit_price: 单价
      quantity: 数量
"""


def test_a_chinese_export_in_gbk_with_all_its_habits(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(CHINESE)
    text = (
        "门店销售明细表,,,,,,,,,,\n"
        "序号,订单编号,下单时间,订单状态,实付金额,商品编码,商品名称,单价,数量,手机号,收货人\n"
        '１,="0042026031400001",2026/3/14 9:05,交易成功,"￥１，２３４．５０",A１,青花碗,￥400.00,３,１００１２３４５６７８,王芳\n'
        "２,,,,,B2,茶壶𠮷,￥34.50,1,,\n"
        "3,0042026031400002\t,2026年3月14日 21时5分9秒,待付款,9.9,A1,青花碗,9.9,1,10099990001,李娜\n"
        "4,0042026031400003,2026/3/14 22:00,已付款,5,A1,青花碗,5,1,,\n"
        ",,,,,,,,,,\n"
        "合计,,,,1244.40,,,,,,\n"
    )
    (folder / "销售明细_20260314.csv").write_bytes(text.encode("gb18030"))
    summary = night()["orders"]
    assert (summary.seen, summary.changed, summary.rejected) == (3, 3, 0), rejects(db)
    assert rows(
        db,
        "SELECT order_id, status, status_original, is_paid, paid_amount, goods_amount, line_count, created_at::text FROM core.orders ORDER BY 1",
    ) == [
        (
            "0042026031400001",
            "finished",
            "交易成功",
            True,
            Decimal("1234.5"),
            Decimal("1234.5"),
            2,
            "2026-03-14 09:05:00+08",
        ),
        ("0042026031400002", "unpaid", "待付款", False, Decimal("9.9"), Decimal("9.9"), 1, "2026-03-14 21:05:09+08"),
        ("0042026031400003", "paid", "已付款", True, Decimal(5), Decimal(5), 1, "2026-03-14 22:00:00+08"),
    ]
    nobody = "SELECT order_id FROM core.orders WHERE identity_id IS NULL"
    assert rows(db, nobody) == [("0042026031400003",)], "an empty phone is not the one above"
    assert rows(db, "SELECT product_id, title, quantity FROM core.order_lines ORDER BY 1, 2 DESC, 3")[-1][1] == "茶壶𠮷"
    original = rows(db, "SELECT payload -> 'original' FROM raw.records WHERE record_key = '0042026031400001'")[0][0]
    assert original["实付金额"] == "￥１，２３４．５０", "the text as it was written stays in raw"
    stored = str(rows(db, "SELECT payload FROM raw.records"))
    for personal in ("王芳", "１００１２３４５６７８", "10012345678", "10099990001", "李娜"):
        assert personal not in stored
    assert rows(db, "SELECT count(*) FROM core.identities WHERE kind = 'phone' AND value LIKE 'phone:%%'") == [(2,)]


EUROPEAN = """
orders:
  file: kasse/bestellungen_{date:%d%m%y}_{filiale}.csv
  encoding: utf-16
  delimiter: ";"
  zone: Europe/Berlin
  decimal_sign: ","
  time_formats: ["%d.%m.%Y %H:%M"]
  columns:
    order_id: Bon-Nr.
    status: Status
    created_at: Datum
    customer_id: Kunde
    email: E-Mail
    line_count: Positionen
  statuses: {bezahlt: paid, storniert: cancelled}
  lines:
    file: kasse/positionen_{date:%d%m%y}_{filiale}.csv
    columns:
      order_id: Bon-Nr.
      line_id: Pos
      product_id: Artikel
      title: Bezeichnung
      line_amount: Betrag
      quantity: Menge
    encoding: utf-8
    delimiter: ";"
  payments:
    file: kasse/zahlungen_{date:%d%m%y}_{filiale}.csv
    encoding: utf-8
    delimiter: ";"
    columns: {order_id: Bon-Nr., amount: Betrag, paid_at: Zeit, method: Art}
"""


def european(folder: Path) -> Path:
    place = folder / "kasse"
    place.mkdir(exist_ok=True)
    (place / "bestellungen_140326_mitte.csv").write_bytes(
        "Bon-Nr.;Datum;Status;Kunde;E-Mail;Positionen\r\n"
        "K-1;14.03.2026 18:30;bezahlt;7;Anna@Post.test;2\r\n"
        "K-2;14.03.2026 18:31;storniert;;;1\r\n".encode("utf-16")
    )
    (place / "positionen_140326_mitte.csv").write_bytes(
        "\ufeffBon-Nr.;Pos;Artikel;Bezeichnung;Menge;Betrag\n"
        'K-1;1;T-9;"Schüssel; blau";2;1.234,50\n'
        "K-1;2;T-8;Tüte;1;0,10-\n"
        "K-2;1;T-8;Tüte;1;0,10\n".encode()
    )
    (place / "zahlungen_140326_mitte.csv").write_text(
        "Bon-Nr.;Zeit;Art;Betrag\nK-1;14.03.2026 18:35;bar;1.000,00\nK-1;14.03.2026 18:36;Karte;234,40\n"
    )
    return place


def test_a_european_export_of_three_files(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(EUROPEAN, currency="EUR")
    place = european(folder)
    summary = night()["orders"]
    assert (summary.seen, summary.changed, summary.rejected) == (2, 2, 0), rejects(db)
    assert rows(
        db,
        "SELECT order_id, status, paid_amount, goods_amount, currency_code, created_at::text, paid_at::text FROM core.orders ORDER BY 1",
    ) == [
        (
            "K-1",
            "paid",
            Decimal("1234.4"),
            Decimal("1234.4"),
            "EUR",
            "2026-03-15 01:30:00+08",
            "2026-03-15 01:36:00+08",
        ),
        ("K-2", "cancelled", Decimal("0.1"), Decimal("0.1"), "EUR", "2026-03-15 01:31:00+08", None),
    ]
    assert rows(
        db, "SELECT title, unit_price_amount FROM core.order_lines WHERE order_id = 'K-1' ORDER BY line_id"
    ) == [
        ("Schüssel; blau", Decimal("617.25")),
        ("Tüte", Decimal("-0.1")),
    ]
    assert rows(db, "SELECT kind, value FROM core.identities WHERE kind = 'shop_customer_id'") == [
        ("shop_customer_id", "till:7")
    ]
    assert left(place) == []
    assert len(left(folder / "archive" / "kasse")) == 3


EXCEL = """
orders:
  file: "export*.xlsx"
  sheet: Orders
  header_row: 3
  zone: America/New_York
  columns:
    order_id: Order
    status: {column: State, default: closed}
    created_at: Placed
    card: Card
    goods_amount: Goods
    paid_amount: Total
  statuses: {closed: finished, open: paid}
  lines:
    sheet: Items
    columns: {order_id: Order, product_id: SKU, title: Name, unit_price: Price, quantity: Qty}
customers:
  file: "export*.xlsx"
  sheet: Members
  columns:
    customer_id: Card
    card: Card
    phone: Mobile
    points: Points
    is_member: {column: Active, values: {"1": true, "0": false}}
    joined_at: Since
"""


def excel(path: Path, total: float = 30.3) -> Path:
    from datetime import datetime

    book = openpyxl.Workbook()
    orders = book.active
    assert orders is not None
    orders.title = "Orders"
    orders.append(["Weekly export"])
    orders.append([])
    orders.append(["Order", "State", "Placed", "Card", "Goods", "Total", "Clerk"])
    orders.append([900001, None, datetime(2026, 3, 14, 10, 30), 10001, 30.3, total, "Bob"])  # noqa: DTZ001
    orders.append([900002, "open", 46095.5, None, 0.1 + 0.2, 0.3, "Bob"])
    items = book.create_sheet("Items")
    items.append(["Order", "SKU", "Name", "Price", "Qty"])
    for row in ((900001, "S1", "Bowl", 10.1, 3), (900002, "S1", "Bowl", 0.3, 1)):
        items.append(row)
    members = book.create_sheet("Members")
    members.append(["Card", "Mobile", "Points", "Active", "Since"])
    members.append([10001, 10012345678, 120, 1, datetime(2020, 2, 29)])  # noqa: DTZ001
    members.append([10002, None, 0, 0, "2021-01-01"])
    book.save(path)
    return path


def test_an_excel_file_with_a_sheet_for_each_table(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(EXCEL)
    excel(folder / "export week 11.xlsx")
    assert land("orders").changed == 2
    assert left(folder) == ["export week 11.xlsx"], "the members in it were not read yet"
    night("customers")
    assert left(folder) == []
    assert rejects(db) == []
    assert rows(
        db, "SELECT order_id, status, goods_amount, paid_amount, created_at::text FROM core.orders ORDER BY 1"
    ) == [
        ("900001", "finished", Decimal("30.3"), Decimal("30.3"), "2026-03-14 22:30:00+08"),
        ("900002", "paid", Decimal("0.3"), Decimal("0.3"), "2026-03-15 00:00:00+08"),
    ]
    assert rows(db, "SELECT customer_id, is_member, points, joined_at::text FROM core.customers ORDER BY 1") == [
        ("10001", True, Decimal(120), "2020-02-29 00:00:00+08"),
        ("10002", False, Decimal(0), "2021-01-01 00:00:00+08"),
    ]
    mapping.resolve_members(run_id="r")
    same = "SELECT count(DISTINCT mi.member_id) FROM core.member_identities AS mi JOIN core.identities AS i USING (identity_id)"
    assert rows(db, f"{same} WHERE i.value IN ('till:10001') OR i.kind = 'phone'") == [(1,)], (
        "card and phone are one person"
    )
    note = land("orders").sentence()
    assert "0 records seen" in note, "the same file is not read twice"


REVIEWS = """
reviews:
  file: 评价_{date}.csv
  columns:
    review_id: 评价ID
    order_id: 订单号
    rating: {column: 评分, values: {好评: 5, 中评: 3, 差评: 1}}
    content: 内容
    created_at: 时间
refunds:
  file: 退款_{date}.csv
  columns:
    refund_id: 退款单号
    order_id: 订单号
    status: 状态
    refund_amount: {column: 退款金额, unit: fen}
    created_at: 申请时间
    reason: 原因
  statuses: {退款成功: settled, 待审核: requested}
products:
  file: 商品.csv
  columns: {product_id: 编码, title: 名称, price_amount: 售价, is_listed: 在售}
"""


def test_reviews_refunds_and_articles_by_yaml_only(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(REVIEWS)
    (folder / "评价_20260314.csv").write_text(
        "评价ID,订单号,评分,内容,时间\nV1,A1,好评,打10012345678找我,2026-03-14 10:00\nV2,A1,4,,2026-03-14 10:00\n"
    )
    (folder / "退款_20260314.csv").write_text(
        "退款单号,订单号,状态,退款金额,申请时间,原因\nR1,A1,退款成功,1050,2026-03-14 11:00,破损\nR2,A1,待审核,1,2026-03-14 11:00,\n"
    )
    (folder / "商品.csv").write_text("编码,名称,售价,在售\nP1,碗,12.5,是\nP2,壶,,否\n")
    night("reviews", "refunds", "products")
    assert rejects(db) == []
    assert rows(db, "SELECT review_id, rating, rating_original FROM core.reviews ORDER BY 1") == [
        ("V1", 5, "好评"),
        ("V2", 4, "4"),
    ]
    assert "10012345678" not in rows(db, "SELECT content FROM core.reviews WHERE review_id = 'V1'")[0][0]
    assert rows(db, "SELECT refund_id, status, is_money, refund_amount, reason FROM core.refunds ORDER BY 1") == [
        ("R1", "settled", True, Decimal("10.5"), "破损"),
        ("R2", "requested", False, Decimal("0.01"), None),
    ]
    assert rows(db, "SELECT product_id, price_amount, is_listed FROM core.products ORDER BY 1") == [
        ("P1", Decimal("12.5"), True),
        ("P2", None, False),
    ]


def documented(number: int) -> str:
    """One of the examples of docs/connections/files.md, as it stands there."""
    page = Path(__file__).resolve().parents[2] / "docs" / "connections" / "files.md"
    examples = page.read_text().split("## Examples")[1].split("```yaml\n")[1:]
    return yaml.safe_dump(
        yaml.safe_load(textwrap.dedent(examples[number].split("```")[0]))["tables"], allow_unicode=True
    )


def test_the_documented_example_of_group_buying(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(documented(0))
    (folder / "团购明细_20260314.csv").write_text(
        "券码,套餐ID,套餐名称,售价,实收金额,购买时间,验券时间,券状态,手机号\n"
        "1234 5678 9012,88001,双人下午茶,128.00,121.60,2026-03-12 19:20:11,2026-03-14 15:00:02,已消费,10012345678\n"
        "1234 5678 9013,88001,双人下午茶,128.00,121.60,2026-03-14 08:00:00,,待消费,100****5679\n"
        '1234 5678 9014,88002,四人餐,"1,288.00","1,288.00",2026-03-14 09:00:00,--,已退款,\n',
        encoding="gbk",
    )
    (folder / "团购明细退款_20260314.csv").write_text(
        '券码,退款金额,退款时间\n1234 5678 9014,"1,288.00",2026-03-14 18:00:00\n', encoding="gbk"
    )
    night("orders", "refunds")
    assert rejects(db) == []
    assert rows(
        db,
        "SELECT order_id, status, is_paid, goods_amount, paid_amount, signed_at::date::text FROM core.orders ORDER BY 1",
    ) == [
        ("1234 5678 9012", "finished", True, Decimal(128), Decimal("121.6"), "2026-03-14"),
        ("1234 5678 9013", "paid", True, Decimal(128), Decimal("121.6"), None),
        ("1234 5678 9014", "refunded", True, Decimal(1288), Decimal(1288), None),
    ]
    assert rows(db, "SELECT order_id, refund_amount, is_money FROM core.refunds") == [
        ("1234 5678 9014", Decimal(1288), True)
    ]
    assert rows(db, "SELECT count(*) FROM core.identities") == [(1,)], "a masked phone is nobody"


def test_the_documented_example_of_a_console_export(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(documented(1))
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "订单"
    for row in (
        ["订单导出"],
        ["导出时间", "2026-03-15 01:00:00"],
        [
            "订单编号",
            "下单时间",
            "付款时间",
            "订单状态",
            "应付总额",
            "运费",
            "收货人",
            "手机",
            "收货地址",
            "商品编号",
            "货号",
            "商品名称",
            "单价",
            "数量",
        ],
        [
            "38210001",
            "2026-03-14 10:00:00",
            "2026-03-14 10:03:00",
            "已发货",
            110,
            10,
            "王芳",
            "10012345678",
            "夜市街1号",
            "D1",
            "85123A",
            "碗",
            40,
            2,
        ],
        [None, None, None, None, None, None, None, None, None, "D2", "71053", "壶", 20, 1],
        [
            "38210002",
            "2026-03-14 11:00:00",
            None,
            "等待付款",
            "￥20.00",
            0,
            "李娜",
            "10012345679",
            "夜市街2号",
            "D2",
            "71053",
            "壶",
            20,
            1,
        ],
        ["合计", None, None, None, 130],
    ):
        sheet.append(row)
    book.save(folder / "订单导出20260315.xlsx")
    night()
    assert rejects(db) == []
    assert rows(
        db,
        "SELECT order_id, status, is_paid, paid_amount, postage_amount, goods_amount, line_count FROM core.orders ORDER BY 1",
    ) == [
        ("38210001", "shipped", True, Decimal(110), Decimal(10), Decimal(100), 2),
        ("38210002", "unpaid", False, Decimal(20), Decimal(0), Decimal(20), 1),
    ]
    stored = str(rows(db, "SELECT payload FROM raw.records"))
    for personal in ("王芳", "李娜", "1001234567", "夜市街"):
        assert personal not in stored


# ------------------------------------------------------------------------------------------------ bad rows, good rows
SIMPLE = """
orders:
  file: orders_{date}.csv
  columns: {order_id: id, status: state, created_at: at, paid_amount: paid, phone: phone, line_count: lines}
  statuses: {done: finished, open: paid}
  lines:
    file: lines_{date}.csv
    columns: {order_id: id, product_id: sku, unit_price: price, quantity: n}
"""
HEAD, LINE = "id,state,at,paid,phone,lines\n", "id,sku,price,n\n"


def deliver(folder: Path, day: str, orders: str | None, lines: str | None) -> None:
    if orders is not None:
        (folder / f"orders_{day}.csv").write_text(HEAD + orders)
    if lines is not None:
        (folder / f"lines_{day}.csv").write_text(LINE + lines)


BAD_ORDERS = (
    "A1,done,2026-03-14 10:00,10,10012345678,1\n"
    "A2,vanished,2026-03-14 10:00,10,10012345679,1\n"  # line 3
    ",done,2026-03-14 10:00,10,10012345670,1\n"  # line 4
    "A4,done,14/03/2026,1O,10012345671,1\n"  # line 5
    "A5,done,2026-03-14 10:00,10,10012345672,1,extra\n"  # line 6
    "A6,done\n"  # line 7
    "A7,done,2026-03-14 10:00,10,10012345673,1\n"
)
BAD_LINES = "A1,S1,10,1\nA2,S1,10,1\nA4,S1,10,1\nA5,S1,10,1\nA7,S1,ten,1\n"


def test_good_rows_go_in_and_bad_ones_say_file_line_field_and_what_to_do(
    db: psycopg.Connection[Row], declare: Declare
) -> None:
    folder = declare(SIMPLE)
    deliver(folder, "20260314", BAD_ORDERS, BAD_LINES)
    summary = night()["orders"]
    assert rows(db, "SELECT order_id FROM core.orders") == [("A1",)]
    found = "\n".join(rejects(db))
    for words in (
        'orders_20260314.csv:3: status (column state) is a word that the table `statuses` does not have: "vanished"; add it there',
        "orders_20260314.csv:4: order_id (column id) is empty",
        'created_at (column at) is not a time that begins with the year: "99/99/9999"; declare time_formats',
        "paid_amount (column paid) is not a number with decimal sign '.' and thousand sign ',': \"9a\"",
        "orders_20260314.csv:6: the line has 7 cells, the header 6 (a delimiter inside a value?)",
        "orders_20260314.csv:7: the line has 2 cells, the header 6",
        "lines_20260314.csv:6: unit_price (column price) is not a number",
    ):
        assert words in found, found
    assert summary.rejected == summary.unusable
    assert "unusable rows in quarantine" in summary.sentence()
    everywhere = (
        found + str(rows(db, "SELECT payload FROM raw.rejects")) + str(rows(db, "SELECT payload FROM raw.records"))
    )
    for number in range(10012345670, 10012345680):
        assert str(number) not in everywhere
    assert rows(db, "SELECT count(*) FROM raw.rejects WHERE payload ->> 'phone' LIKE 'phone:%%'")[0][0] >= 3
    counted = rows(
        db, "SELECT path, row_count, rejected_count, waiting_count, archived_at IS NOT NULL FROM raw.files ORDER BY 1"
    )
    assert counted[1][:4] == ("orders_20260314.csv", 7, 5, 0)
    assert left(folder) == ["lines_20260314.csv"], "a line of A5 waits: the row of its order says nothing for certain"


def test_a_corrected_file_updates_and_resolves_the_rejects_of_the_first(
    db: psycopg.Connection[Row], declare: Declare
) -> None:
    folder = declare(SIMPLE)
    deliver(folder, "20260314", BAD_ORDERS, BAD_LINES)
    night()
    good = "".join(f"A{n},done,2026-03-14 10:00,{n},1001234567{n},1\n" for n in range(1, 8))
    deliver(folder, "20260314", good, "".join(f"A{n},S1,{n},1\n" for n in range(1, 8)))
    night()
    assert rejects(db) == []
    assert rows(db, "SELECT order_id, paid_amount FROM core.orders ORDER BY 1") == [
        (f"A{n}", Decimal(n)) for n in range(1, 8)
    ]
    assert len(left(folder / "archive")) == 3, (
        "both deliveries of the orders are kept; the waiting lines were overwritten"
    )
    assert left(folder) == []
    assert rows(db, "SELECT count(*) FROM raw.files WHERE waiting_count > 0") == [(0,)]


def test_a_corrected_lines_file_alone_finds_its_orders_in_the_archive(
    db: psycopg.Connection[Row], declare: Declare
) -> None:
    folder = declare(SIMPLE)
    deliver(
        folder, "20260314", "A1,done,2026-03-14 10:00,30,,1\nA2,done,2026-03-14 10:00,5,,1\n", "A1,S1,10,1\nA2,S2,5,1\n"
    )
    night()
    deliver(folder, "20260314", None, "A1,S1,10,3\nA2,S2,5,1\n")
    summary = night()["orders"]
    assert (summary.seen, summary.changed) == (2, 1), "the other order is the same"
    assert rows(db, "SELECT order_id, goods_amount FROM core.orders ORDER BY 1") == [
        ("A1", Decimal(30)),
        ("A2", Decimal(5)),
    ]
    assert left(folder) == []


def test_an_export_without_lines_makes_one_line_of_each_order(db: psycopg.Connection[Row], declare: Declare) -> None:
    plain = SIMPLE.split("  lines:\n")[0].replace(", line_count: lines", "") + "  lines: none\n"
    paid = "  payments:\n    file: paid_{date}.csv\n    columns: {order_id: id, amount: sum}\n"
    for text, name, amount in (
        (plain, "A1", Decimal(30)),
        (plain.replace(", paid_amount: paid", "") + paid, "A2", Decimal(12)),
    ):
        folder = declare(text)
        deliver(folder, f"2026031{name[1]}", f"{name},done,2026-03-14 10:00,30,,\n", None)
        if "payments" in text:
            assert land().seen == 0, "paid, but nobody knows how much yet"
            (folder / "paid_20260312.csv").write_text("id,sum\nA2,5\nA2,7\n")
        night()
        found = rows(db, "SELECT product_id, line_amount, o.paid_amount FROM core.order_lines JOIN core.orders AS o USING (order_id)"
                         " WHERE order_id = %s", name)  # fmt: skip
        assert found == [("unknown", amount, amount)]
        assert rejects(db) == []


def test_tables_may_stand_in_folders_of_their_own(db: psycopg.Connection[Row], declare: Declare) -> None:
    text = SIMPLE.replace("orders_{date}", "heads/{date}").replace("lines_{date}", "rows/{date}")
    folder = declare(text, expect="daily")
    (folder / "heads").mkdir()
    (folder / "rows").mkdir()
    (folder / "heads" / "20260314.csv").write_text(HEAD + "A1,done,2026-03-14 10:00,30,,1\n")
    with pytest.raises(BadPayload, match="no lines file for 2026-03-14; ask for it"):
        land()
    (folder / "rows" / "20260314.csv").write_text(LINE + "A1,S1,10,1\n")
    assert land().changed == 1
    assert (left(folder / "heads"), left(folder / "rows")) == ([], [])


def test_what_is_personal_in_a_part_is_hidden_in_quarantine_too(db: psycopg.Connection[Row], declare: Declare) -> None:
    text = SIMPLE.replace("lines_{date}.csv", "lines_{date}.csv\n    keep: [note]\n    personal: {giver: name}")
    folder = declare(text, wait_days=0)
    deliver(folder, "20260314", "A1,done,2026-03-14 10:00,30,,1\n", None)
    (folder / "lines_20260314.csv").write_text(
        "id,sku,price,n,note,giver\n,S1,10,1,call 10012345678,王芳\nB9,S1,10,1,call 10012345679,李娜\n"
    )
    land()
    assert len(rejects(db)) == 3
    stored = str(rows(db, "SELECT payload FROM raw.rejects"))
    for personal in ("1001234567", "王芳", "李娜"):
        assert personal not in stored
    assert stored.count("name:") == 2


def test_a_row_that_became_usable_in_another_file_resolves_its_reject(
    db: psycopg.Connection[Row], declare: Declare
) -> None:
    folder = declare(SIMPLE)
    deliver(folder, "20260313", "A1,what,2026-03-13 10:00,30,,1\n", "A1,S1,10,1\n")
    night()
    assert len(rejects(db)) == 1
    deliver(folder, "20260314", "A1,done,2026-03-13 10:00,30,,1\n", "A1,S1,10,1\n")
    night()
    assert rejects(db) == []


def test_a_later_file_wins_and_an_older_one_does_not_bring_its_state_back(
    db: psycopg.Connection[Row], declare: Declare
) -> None:
    folder = declare(SIMPLE)
    deliver(folder, "20260314", "A1,done,2026-03-12 10:00,30,,1\n", "A1,S1,10,1\n")
    night()
    deliver(folder, "20260312", "A1,open,2026-03-12 10:00,30,,1\n", "A1,S1,10,1\n")
    night()
    assert rows(db, "SELECT status FROM core.orders") == [("finished",)]


def test_a_file_put_back_after_the_yaml_was_mended_is_read_again(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(SIMPLE)
    deliver(folder, "20260314", "A1,gone,2026-03-14 10:00,30,,1\n", "A1,S1,10,1\n")
    night()
    assert rows(db, "SELECT count(*) FROM core.orders") == [(0,)]
    archived = next(path for path in (folder / "archive").iterdir() if path.name.startswith("orders"))
    archived.rename(folder / "orders_20260314.csv")
    declare(SIMPLE.replace("done: finished", "gone: finished"))
    night()
    assert rows(db, "SELECT status FROM core.orders") == [("finished",)]
    assert rejects(db) == []


# ------------------------------------------------------------------------------------------------------------ waiting
def test_an_order_waits_for_its_lines_and_is_counted(
    db: psycopg.Connection[Row], declare: Declare, set_clock: Callable[[str], None]
) -> None:
    folder = declare(SIMPLE)
    deliver(folder, "20260314", "A1,done,2026-03-14 10:00,30,,2\nA2,done,2026-03-14 10:00,5,,1\n", None)
    summary = night()["orders"]
    assert (summary.seen, summary.rejected) == (0, 0)
    assert "2 rows wait for rows of other files" in summary.sentence()
    assert left(folder) == ["orders_20260314.csv"]
    deliver(folder, "20260314", None, "A1,S1,10,1\nA2,S2,5,1\n")  # half of A1
    assert night()["orders"].changed == 1
    assert rows(db, "SELECT order_id FROM core.orders") == [("A2",)]
    assert rows(db, "SELECT path, waiting_count FROM raw.files WHERE waiting_count > 0 ORDER BY 1") == [
        ("lines_20260314.csv", 1),
        ("orders_20260314.csv", 1),
    ]
    set_clock("2026-03-16T02:30:00+08:00")
    deliver(folder, "20260315", "", "A1,S3,20,1\n")  # the other half comes with the next day
    night()
    assert rows(db, "SELECT order_id, line_count FROM core.orders ORDER BY 1") == [("A1", 2), ("A2", 1)]
    assert left(folder) == []
    assert rejects(db) == []


def test_who_waited_long_enough_is_in_quarantine_and_comes_in_when_delivered_whole(
    db: psycopg.Connection[Row], declare: Declare, set_clock: Callable[[str], None]
) -> None:
    folder = declare(SIMPLE, wait_days=2)
    deliver(folder, "20260314", "A1,done,2026-03-14 10:00,30,10012345678,1\n", "B9,S1,10,1\n")
    night()
    assert rejects(db) == []
    set_clock("2026-03-17T03:30:00+08:00")
    night()
    assert rejects(db) == [
        "lines_20260314.csv:2: no orders file had the order of this row of lines, for 2 days",
        "orders_20260314.csv:2: its lines did not come within 2 days; deliver orders, lines and payments again together",
    ]
    assert left(folder) == []
    deliver(folder, "20260316", "A1,done,2026-03-14 10:00,30,10012345678,1\n", "A1,S1,10,1\n")
    night()
    assert rows(db, "SELECT order_id FROM core.orders") == [("A1",)]
    assert [reason for reason in rejects(db) if reason.startswith("orders_")] == []


# --------------------------------------------------------------------------------------------- complete, once, archived
def test_a_file_is_taken_when_its_mark_is_there(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(SIMPLE, complete="done")
    deliver(folder, "20260314", "A1,done,2026-03-14 10:00,30,,1\n", "A1,S1,10,1\n")
    (folder / "orders_20260314.csv.done").touch()
    summary = land()
    assert summary.seen == 0
    assert "1 files are still being written" in summary.sentence()
    (folder / "lines_20260314.csv.done").touch()
    assert land().seen == 1
    assert left(folder) == []
    assert len(left(folder / "archive")) == 4


def test_a_file_that_still_grows_is_left_alone(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(SIMPLE, stable_seconds=0.5)
    deliver(folder, "20260314", "A1,done,2026-03-14 10:00,30,,1\n", "A1,S1,10,1\n")
    (folder / ".orders_20260315.csv.part").write_text("id,sta")
    (folder / "orders_20260313.csv.tmp").write_text("id,sta")
    stop = threading.Event()

    def grow() -> None:
        with (folder / "lines_20260314.csv").open("a") as stream:
            while not stop.wait(0.05):
                stream.write("A9,S1,1,1\n")
                stream.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        summary = land()
    finally:
        stop.set()
        writer.join()
    assert "1 files are still being written" in summary.sentence()
    assert rows(db, "SELECT path FROM raw.files") == [("orders_20260314.csv",)]
    assert rows(db, "SELECT count(*) FROM raw.records") == [(0,)]
    old = time.time() - 60
    os.utime(folder / "lines_20260314.csv", (old, old))
    assert land().changed == 1


def test_the_same_content_under_another_name_is_not_read_again(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(SIMPLE)
    for day in ("20260313", "20260314"):
        deliver(folder, day, "A1,done,2026-03-12 10:00,30,,1\n", "A1,S1,10,1\n")
        summary = land()
        assert summary.changed == (1 if day == "20260313" else 0)
    assert summary.seen == 0
    assert left(folder) == []
    assert rows(db, "SELECT count(*) FROM raw.files WHERE archived_at IS NOT NULL") == [(2,)]


def test_a_file_that_is_delivered_again_while_it_is_read_is_not_archived_unread(
    db: psycopg.Connection[Row], declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = declare(SIMPLE)
    deliver(folder, "20260314", "A1,done,2026-03-14 10:00,30,,1\n", "A1,S1,10,1\n")
    archive = files._archive

    def delivered_meanwhile(*arguments: Any) -> None:
        deliver(folder, "20260314", "A1,done,2026-03-14 10:00,3333,,1\n", None)
        archive(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_archive", delivered_meanwhile)
        land()
    assert left(folder) == ["orders_20260314.csv"]
    night()
    assert rows(db, "SELECT paid_amount FROM core.orders") == [(Decimal(3333),)]
    assert left(folder) == []


def test_rows_that_only_moved_in_their_file_are_no_new_versions(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(SIMPLE)
    first = "A1,done,2026-03-12 10:00,30,,1\n"
    deliver(folder, "20260313", first, "A1,S1,10,1\n")
    land()
    deliver(folder, "20260314", "A0,done,2026-03-12 10:00,30,,1\n" + first, "A0,S1,10,1\nA1,S1,10,1\n")
    summary = land()
    assert (summary.seen, summary.changed) == (2, 1)


def test_a_dry_run_and_a_stopped_run_move_nothing(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(SIMPLE)
    count = files.PAGE * 2
    deliver(
        folder,
        "20260314",
        "".join(f"A{n:05},done,2026-03-14 10:00,30,,1\n" for n in range(count)),
        "".join(f"A{n:05},S1,10,1\n" for n in range(count)),
    )
    before = left(folder)
    assert land(dry_run=True).changed == count
    assert left(folder) == before
    assert rows(db, "SELECT count(*) FROM raw.files") == [(0,)]
    stopped = land(limit=files.PAGE)
    assert stopped.is_limited
    assert left(folder) == before
    assert land().changed == count - files.PAGE
    assert left(folder) == []
    assert rows(db, "SELECT count(*) AS n, count(DISTINCT record_key) AS keys FROM raw.records") == [(count, count)]


def test_a_run_that_dies_before_the_archive_finishes_its_work_later(
    db: psycopg.Connection[Row], declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = declare(SIMPLE)
    deliver(folder, "20260314", "A1,done,2026-03-14 10:00,30,,1\n", "A1,S1,10,1\n")

    def die(*_: Any) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(files, "_archive", die)
        with pytest.raises(OSError, match="disk"):
            land()
    assert len(left(folder)) == 2
    summary = land()
    assert (summary.seen, summary.changed) == (0, 0)
    assert left(folder) == []


def test_a_past_range_is_read_again_from_the_archive(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(SIMPLE)
    for day in ("20260312", "20260313", "20260314"):
        deliver(folder, day, f"A{day},done,2026-03-12 10:00,30,,1\n", f"A{day},S1,10,1\n")
    land()
    db.execute("DELETE FROM raw.heads")
    start = dates.day_start(dates.business_date("2026-03-13"))
    summary = land(window=dates.Window(start, start + timedelta(days=1)))
    assert (summary.seen, summary.changed) == (1, 1)
    assert left(folder) == []


# --------------------------------------------------------------------------------------------------------- completeness
def test_a_day_without_its_file_is_a_clear_failure(
    db: psycopg.Connection[Row], declare: Declare, set_clock: Callable[[str], None]
) -> None:
    folder = declare(SIMPLE, expect="daily")
    deliver(folder, "20260313", "A1,done,2026-03-13 10:00,30,,1\n", "A1,S1,10,1\n")
    with pytest.raises(BadPayload, match=r"till, orders: no orders file and no lines file for 2026-03-14; ask"):
        land()
    assert rows(db, "SELECT count(*) FROM raw.records") == [(1,)], "what is there was read"
    assert rows(db, "SELECT watermark::text FROM raw.cursors") == [("2026-03-14 00:00:00+08",)]
    assert rows(db, "SELECT max(window_end)::text FROM raw.batches WHERE is_complete") == [("2026-03-14 00:00:00+08",)]
    deliver(folder, "20260314", "A2,done,2026-03-14 10:00,30,,1\n", "A2,S1,10,1\n")
    assert land().watermark == NOW
    set_clock("2026-03-18T02:30:00+08:00")
    declare(SIMPLE, expect="daily", closed=["2026-03-15"])
    deliver(folder, "20260317", "A3,done,2026-03-17 10:00,30,,1\n", "A3,S1,10,1\n")
    with pytest.raises(BadPayload, match="file for 2026-03-16; ask for it, or list the day under `closed`"):
        land()
    declare(SIMPLE, expect="daily", closed=["2026-03-15", "2026-03-16"])
    assert land().watermark == "2026-03-18T02:30:00+08:00"


def test_quiet_days_have_equal_files_and_are_not_missed(
    db: psycopg.Connection[Row], declare: Declare, set_clock: Callable[[str], None]
) -> None:
    folder = declare(SIMPLE, expect="daily")
    set_clock("2026-03-17T02:30:00+08:00")
    for day in ("20260313", "20260315", "20260316"):  # nothing was sold: the header is all there is
        deliver(folder, day, "", "")
    with pytest.raises(BadPayload, match="no orders file and no lines file for 2026-03-14"):
        land()
    assert left(folder) == []
    deliver(folder, "20260314", "A1,done,2026-03-14 10:00,30,,1\n", "A1,S1,10,1\n")
    assert land().changed == 1


# -------------------------------------------------------------------------------------------------------- whole files
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"id,state,at,paid,phone\n", "the column lines \\(orders\\) is not in row 1 of its 5 columns"),
        (b"id,state,at,payd,phone,lines\n", "the column paid .* did you mean 'payd'"),
        (HEAD.encode("utf-16"), "read as utf-16 it is there: change encoding"),
        (b"", "it is empty"),
        (b"id,state,id,at,paid,phone,lines\n", "the column id stands twice in its header"),
    ],
)
def test_a_file_that_cannot_be_read_fails_the_run_and_stays(
    db: psycopg.Connection[Row], declare: Declare, content: bytes, words: str
) -> None:
    folder = declare(SIMPLE)
    deliver(folder, "20260313", "A1,done,2026-03-13 10:00,30,,1\n", "A1,S1,10,1\n")
    deliver(folder, "20260314", None, "A2,S1,10,1\n")
    (folder / "orders_20260314.csv").write_bytes(content)
    with pytest.raises(BadPayload, match=f"till, orders: orders_20260314.csv: .*{words}"):
        land()
    assert left(folder) == ["lines_20260314.csv", "orders_20260314.csv"], "the good day is done"
    deliver(folder, "20260314", "A2,done,2026-03-14 10:00,30,,1\n", None)
    night()
    assert rows(db, "SELECT order_id FROM core.orders ORDER BY 1") == [("A1",), ("A2",)]
    assert left(folder) == []


def test_broken_bytes_and_open_quotes_spoil_their_row_only(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(REVIEWS)
    head = "评价ID,订单号,评分,内容,时间\n".encode()
    (folder / "评价_20260314.csv").write_bytes(
        head + b"V1,A1,5,\xff\xfe,2026-03-14 10:00\nV2,A1,5,ok,2026-03-14 10:00\n"
        + 'V3,A1,5,"über\nzwei Zeilen",2026-03-14 10:00\nV4,A1,5,"offen,2026-03-14 10:00\n'.encode()
    )  # fmt: skip
    land("reviews")
    assert rows(db, "SELECT record_key FROM raw.records ORDER BY 1") == [("V2",), ("V3",)]
    assert rejects(db) == [
        "评价_20260314.csv:2: the line has bytes that are not utf-8",
        "评价_20260314.csv:6: the line has 4 cells, the header 5",
    ]


def test_excel_mistakes_have_their_own_sentences(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(EXCEL)
    (folder / "export.xlsx").write_bytes(b"PK\x03\x04 this is no workbook")
    with pytest.raises(BadPayload, match=r"export\.xlsx: it is not a readable \.xlsx file; export it again"):
        land("customers")
    book = openpyxl.Workbook()
    book.save(folder / "export.xlsx")
    with pytest.raises(BadPayload, match=r"it has no sheet 'Members', it has 1 others; change sheet"):
        land("customers")


def test_mistakes_in_the_yaml_name_the_place(declare: Declare) -> None:
    for text, words in (
        ("orders: {file: 'a.csv', columns: {order_id: x, status: y, created_at: z}}", "lines: required key is missing"),
        ("refunds: {columns: {refund_id: x}}", r"tables.refunds: file \(the pattern of its names\) is missing"),
        ("refunds: {file: '{date}{date}.csv', columns: {refund_id: x}}", "is not a placeholder like"),
        ("refunds: {file: 'a.csv', encoding: gbq, columns: {refund_id: x}}", "unknown encoding 'gbq'"),
        ("refunds: {file: 'a.csv', colums: {refund_id: x}, columns: {refund_id: x}}", "colums: unknown key"),
        (
            "products: {file: 'a.csv', columns: {product_id: x, tittle: y}}",
            "products have no field 'tittle'; known: is_listed",
        ),
        (SIMPLE.replace("{order_id: id, product_id", "{product_id"), "lines of their own need order_id"),
        (SIMPLE.replace("done: finished", "done: fertig"), "'done' becomes 'fertig', which is not one of ours: unpaid"),
    ):
        declare(text)
        with pytest.raises(ConfigError, match=words) as error:
            land()
        assert "sources.yaml:" in str(error.value)


# --------------------------------------------------------------------------------------------------------------- check
def test_check_says_what_is_there_and_what_would_be_rejected(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(SIMPLE)
    deliver(folder, "20260314", BAD_ORDERS, BAD_LINES)
    (folder / "liesmich.txt").write_text("hallo")
    (folder / "orders_20260313.csv").write_text(
        "id,state,at,paid,phone,lines,clerk\nA9,done,2026-03-13 1:00,1,,1,Bob\n"
    )
    sentence = landing.check_source("till")
    assert sentence.startswith(f"till: works for folder {folder} with 4 files (3 for orders, 1 that no pattern matches")
    assert "the first is liesmich.txt" in sentence
    assert "columns that nobody named and nobody stores: clerk" in sentence
    assert (
        "orders: 6 of 13 rows would be rejected; the first is lines_20260314.csv:6: unit_price (column price)"
        in sentence
    )
    assert len(left(folder)) == 4
    assert rows(db, "SELECT count(*) FROM raw.files") == [(0,)]


def test_members_who_are_numbered_by_their_phone_do_not_show_it(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(EXCEL.replace("card: Card\n    phone: Mobile", "phone: Mobile"))
    book = openpyxl.Workbook()
    orders = book.active
    assert orders is not None
    orders.title = "Orders"
    for row in (
        [],
        [],
        ["Order", "State", "Placed", "Card", "Goods", "Total"],
        ["A1", None, "2026-03-14", 10012345678, 5, 5],
    ):
        orders.append(row)
    for title, content in (
        ("Items", [["Order", "SKU", "Name", "Price", "Qty"], ["A1", "S", "Bowl", 5, 1]]),
        (
            "Members",
            [
                ["Card", "Mobile", "Points", "Active", "Since"],
                [10012345678, 10012345678, "x", 1, None],
                ["10012345679", "", 1, 1, None],
            ],
        ),
    ):
        sheet = book.create_sheet(title)
        for row in content:
            sheet.append(row)
    book.save(folder / "export.xlsx")
    night("orders", "customers")
    everywhere = [
        str(rows(db, f"SELECT t::text FROM {table} AS t"))
        for table in ("raw.records", "raw.heads", "raw.rejects", "core.orders", "core.customers", "core.identities")
    ]
    assert "100123456" not in "".join(everywhere)
    assert rows(db, "SELECT customer_id LIKE 'phone:%%' AS hidden FROM core.customers") == [(True,)]
    assert "points (column Points) is not a number" in rejects(db)[0]
    assert rows(db, "SELECT record_key LIKE 'phone:%%' AS hidden FROM raw.rejects") == [(True,)]


def test_columns_that_nobody_named_are_not_stored_but_told(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(REVIEWS)
    (folder / "商品.csv").write_text("编码,名称,售价,在售,采购员\nP1,碗,12.5,是,王芳 10012345678\n")
    summary = land("products")
    assert "商品.csv: not stored, because nobody named them: 采购员" in summary.sentence()
    assert "王芳" not in str(rows(db, "SELECT payload FROM raw.records"))
    declare(REVIEWS.replace("在售}", "在售}\n  keep: '*'"))
    (folder / "商品.csv").write_text("编码,名称,售价,在售,备注\nP1,碗,12.5,是,问 10012345678\n")
    land("products")
    kept = rows(db, "SELECT payload #>> '{original,备注}' FROM raw.records ORDER BY record_id DESC LIMIT 1")[0][0]
    assert kept.startswith("问 phone:"), "what is kept unread is looked through for numbers and addresses"


# ------------------------------------------------------------------------------------------------------------ any order
SHUFFLED = """
orders:
  file: orders_{date}.csv
  columns: {order_id: id, status: {constant: paid}, created_at: at, line_count: lines}
  lines: {file: "lines_{date}*.csv", columns: {order_id: id, line_id: line, product_id: sku, unit_price: price, quantity: n}}
"""


def records_of(folder: Path) -> list[Any]:
    """What landing would be given, without where it stood; lines by their ids."""
    options = files.Options.model_validate({"stable_seconds": 0, "tables": yaml.safe_load(SHUFFLED)})
    client = files.connect(Credentials("till", extra={"folder": str(folder)}), Transport("files"), options=options)
    plan = Plan(dates.now(), {}, timedelta(0), timedelta(1), timedelta(9), is_dry_run=True)
    found = [
        row for piece in files.streams(options)["orders"].slices(client, plan) for page in piece.pages() for row in page
    ]
    for record in found:
        assert isinstance(record, dict), record
        del record["at"]
        record["lines"].sort(key=lambda line: int(line["line_id"]))
    return sorted(found, key=lambda record: str(record["order_id"]))


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    chance=st.randoms(use_true_random=False),
    pieces=st.integers(1, 3),
)
@settings(max_examples=40)
def test_rows_may_stand_in_any_order_and_in_any_number_of_files(counts: list[int], chance: Any, pieces: int) -> None:
    heads = [f"A{order},2026-03-14 10:00,{count}" for order, count in enumerate(counts)]
    lines = [f"A{order},{line},S{line},1.5,2" for order, count in enumerate(counts) for line in range(count)]
    results = []
    for shuffled in (False, True):
        if shuffled:
            chance.shuffle(heads)
            chance.shuffle(lines)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "orders_20260314.csv").write_text("\n".join(["id,at,lines", *heads]))
            for piece in range(pieces if shuffled else 1):
                part = lines[piece::pieces] if shuffled else lines
                (folder / f"lines_20260314_{piece}.csv").write_text("\n".join(["id,line,sku,price,n", *part]))
            results.append(records_of(folder))
    assert len(results[0]) == len(counts)
    assert results[0] == results[1]


# -------------------------------------------------------------------------------------------------------------- memory
READ_IN_A_PROCESS = """
import sys
from datetime import UTC, datetime, timedelta
from nightmarket.platforms import files
from nightmarket.platforms.base import Plan, Transport
from nightmarket.settings import Credentials
import yaml
options = files.Options.model_validate({"stable_seconds": 0, "tables": yaml.safe_load(sys.argv[2])})
client = files.connect(Credentials("till", extra={"folder": sys.argv[1]}), Transport("files"), options=options)
plan = Plan(datetime(2026, 3, 15, tzinfo=UTC), {}, timedelta(0), timedelta(1), timedelta(9), is_dry_run=True)
slices = files.streams(options)["orders"].slices(client, plan)
count = sum(len(page) for piece in slices for page in piece.pages())
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss would be the parent's
print(count, peak // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_files(tmp_path: Path) -> None:
    peaks = {}
    for count in (10_000, 60_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        with (folder / "orders_20260314.csv").open("w") as orders, (folder / "lines_20260314.csv").open("w") as lines:
            orders.write(HEAD)
            lines.write(LINE)
            for number in range(count):
                orders.write(f"A{number:09},done,2026-03-14 10:00,12.50,,2\n")
            for number in range(2 * count):  # in another order than the orders
                lines.write(f"A{number * 7919 % count:09},S{number % 500},6.25,1\n")
        result = subprocess.run(
            [sys.executable, "-c", READ_IN_A_PROCESS, str(folder), SIMPLE],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(files.__file__).resolve().parents[2])},
            check=True,
        )
        seen, peaks[count] = map(int, result.stdout.split())
        assert seen == count
    assert peaks[60_000] < 300, "MB"
    assert peaks[60_000] - peaks[10_000] < 50, "the join is on disk"


# ---------------------------------------------------------------------------------------------------------------- SFTP
class Server(asyncssh.SSHServer):
    """Takes the account `till` with its password or its key."""

    key: asyncssh.SSHKey

    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == ("till", "s3cret-word")

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == "till" and key == self.key


class Sftp:
    """A real SFTP server on a free port, in a thread."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.client_key = asyncssh.generate_private_key("ssh-ed25519")
        Server.key = self.client_key.convert_to_public()
        self.loop = asyncio.new_event_loop()
        self.connections = 0
        ready = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self.thread.start()
        assert ready.wait(10)

    def _run(self, ready: threading.Event) -> None:
        async def serve() -> None:
            def made() -> Server:
                self.connections += 1
                return Server()

            self.server = await asyncssh.create_server(
                made, "127.0.0.1", 0, server_host_keys=[self.host_key],
                sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(self.root)),
            )  # fmt: skip
            self.port = self.server.sockets[0].getsockname()[1]
            ready.set()

        self.loop.run_until_complete(serve())
        self.loop.run_forever()

    def known_hosts(self) -> str:
        return f"[127.0.0.1]:{self.port} {self.host_key.export_public_key().decode().strip()}"

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)


@pytest.fixture
def sftp(tmp_path: Path) -> Iterator[Sftp]:
    root = tmp_path / "sftp"
    (root / "drop").mkdir(parents=True)
    server = Sftp(root)
    yield server
    server.close()


def sftp_connection(
    monkeypatch: pytest.MonkeyPatch, sftp: Sftp, extra: dict[str, Any] | None = None, **more: Any
) -> None:
    import json

    connection = {
        "conn_type": "nightmarket_files", "host": "127.0.0.1", "port": sftp.port, "login": "till", "password": "s3cret-word",
        "extra": {"folder": "/drop", "known_hosts": sftp.known_hosts()} | (extra or {}),
    } | more  # fmt: skip
    monkeypatch.setenv("AIRFLOW_CONN_TILL", json.dumps(connection))


def test_files_come_from_and_are_archived_on_an_sftp_server(
    db: psycopg.Connection[Row], declare: Declare, sftp: Sftp, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(EUROPEAN)
    sftp_connection(monkeypatch, sftp)
    folder = sftp.root / "drop"
    european(folder)
    assert "with 3 files (3 for orders)" in landing.check_source("till")
    summary = night()["orders"]
    assert (summary.changed, summary.rejected) == (2, 0), rejects(db)
    assert summary.requests > 5, "the bound of requests counts what is asked of the server"
    assert left(folder / "kasse") == []
    assert len(left(folder / "archive" / "kasse")) == 3
    assert rows(db, "SELECT order_id FROM core.orders ORDER BY 1") == [("K-1",), ("K-2",)]
    assert land().seen == 0
    european(folder)  # the same content again
    assert land().seen == 0
    assert left(folder / "kasse") == []


def test_a_key_works_instead_of_a_password(
    db: psycopg.Connection[Row], declare: Declare, sftp: Sftp, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(SIMPLE)
    secret = sftp.client_key.export_private_key(passphrase="open sesame").decode()
    sftp_connection(monkeypatch, sftp, {"private_key": secret, "passphrase": "open sesame"}, password="")
    deliver(sftp.root / "drop", "20260314", "A1,done,2026-03-14 10:00,30,,1\n", "A1,S1,10,1\n")
    assert land().changed == 1
    sftp_connection(monkeypatch, sftp, {"private_key": secret, "passphrase": "wrong"}, password="")
    with pytest.raises(ConfigError, match=r"extra\.private_key cannot be read") as error:
        land()
    assert "wrong" not in str(error.value)


def test_sftp_mistakes_say_what_to_do(
    db: psycopg.Connection[Row], declare: Declare, sftp: Sftp, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(SIMPLE)
    stranger = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    for extra, more, kind, words in (
        ({"known_hosts": f"[127.0.0.1]:{sftp.port} {stranger}"}, {}, AuthError, "host key of 127.0.0.1 is not the one"),
        ({"known_hosts": ""}, {}, ConfigError, "extra.known_hosts is missing; put the server's line"),
        ({}, {"password": "guessed"}, AuthError, "refuses the login; check login, password or extra.private_key"),
        ({}, {"password": ""}, ConfigError, "neither password nor extra.private_key is given"),
        ({}, {"login": ""}, ConfigError, "login \\(the SFTP account\\) is missing"),
        ({"folder": ""}, {}, ConfigError, "extra.folder \\(where the files are\\) is missing"),
        ({"folder": "/nowhere"}, {}, NotFound, "the server has no folder /nowhere; see extra.folder"),
    ):
        sftp_connection(monkeypatch, sftp, extra, **more)
        with pytest.raises(kind, match=words) as error:
            land()
        assert "guessed" not in str(error.value)
        assert "s3cret" not in str(error.value)


def test_a_cut_connection_is_opened_again(
    db: psycopg.Connection[Row], declare: Declare, sftp: Sftp, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nightmarket.platforms.sftp import SftpFolder

    declare(SIMPLE)
    sftp_connection(monkeypatch, sftp)
    deliver(sftp.root / "drop", "20260314", "A1,done,2026-03-14 10:00,30,,1\n", "A1,S1,10,1\n")
    cuts = iter([True, False, False, True, False, True])
    connected = SftpFolder._connected

    async def cut(self: Any) -> Any:
        client = await connected(self)
        with contextlib.suppress(StopIteration):
            if next(cuts):
                self._connection.abort()
        return client

    monkeypatch.setattr(SftpFolder, "_connected", cut)
    assert land().changed == 1
    assert sftp.connections >= 3
    assert left(sftp.root / "drop") == []


def test_the_code_of_a_receipt_is_a_token(db: psycopg.Connection[Row], declare: Declare) -> None:
    folder = declare(CHINESE.replace("    name: 收货人\n", "    name: 收货人\n    coupon_code: 券码\n"))
    header = "订单编号,下单时间,订单状态,实付金额,商品编码,商品名称,单价,数量,手机号,收货人,券码\n"
    text = (
        "门店销售明细表,,,,,,,,,,\n" + header + "A1,2026/3/14 9:05,交易成功,80,P1,碗,100,1,,,3m7k aatw\n"
        "A2,2026/3/14 9:09,交易成功,80,P1,碗,80,1,,,\n"
    )
    (folder / "销售明细_20260314.csv").write_bytes(text.encode("gb18030"))
    night()
    assert rejects(db) == []
    assert rows(db, "SELECT order_source_id, order_id, code_token FROM core.coupon_uses") == [
        ("till", "A1", Tokenizer.from_settings().token("coupon", "3M7K-AATW"))
    ]
    assert rows(db, "SELECT count(*) FROM raw.records WHERE payload::text ILIKE '%%aatw%%'") == [(0,)]
