"""Texts of strangers become numbers, instants and records; what cannot become one is named without being shown."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nightmarket.platforms import declared
from nightmarket.platforms.declared import Reader, Table, Unreadable, judge, to_decimal_text, to_instant, to_number

SHANGHAI = ZoneInfo("Asia/Shanghai")
ZONES = st.sampled_from(["Asia/Shanghai", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "UTC"]).map(ZoneInfo)
AMOUNTS = st.decimals(min_value=-(10**12), max_value=10**12, places=2, allow_nan=False, allow_infinity=False)
INSTANTS = st.integers(
    min_value=int(datetime(1991, 1, 1, tzinfo=UTC).timestamp()),
    max_value=int(datetime(2099, 1, 1, tzinfo=UTC).timestamp()),
).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
SIGNS = st.sampled_from([(".", ","), (",", "."), (",", " "), (".", "'"), (".", ""), (",", "")])


def written(amount: Decimal, decimal_sign: str, thousand_sign: str) -> str:
    return f"{amount:,.2f}".replace(",", "T").replace(".", decimal_sign).replace("T", thousand_sign)


def full_width(text: str) -> str:
    return "".join(chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign for sign in text)


@given(AMOUNTS, SIGNS)
def test_numbers_survive_every_pair_of_signs(amount: Decimal, signs: tuple[str, str]) -> None:
    assert to_number(written(amount, *signs), *signs) == amount


@given(AMOUNTS, st.sampled_from(["￥{}", "¥ {}", "{}元", "CNY{}", "{} ", "\t{}", '="{}"', "{}€", "+{}"]))
def test_currency_wrappings_and_full_width_say_nothing(amount: Decimal, form: str) -> None:
    text = form.format(written(abs(amount), ".", ","))
    assert to_number(text) == to_number(full_width(text)) == abs(amount)


@given(AMOUNTS.filter(lambda amount: amount > 0))
def test_four_ways_to_write_less_than_nothing(amount: Decimal) -> None:
    plain = written(amount, ".", ",")
    for text in (f"-{plain}", f"{plain}-", f"({plain})", f"￥-{plain}", f"-¥{plain}", f"\u2212{plain}"):
        assert to_number(text) == -amount, text


@given(AMOUNTS.filter(lambda amount: amount % 1 != 0))
def test_a_decimal_comma_that_was_not_declared_is_refused(amount: Decimal) -> None:
    with pytest.raises(Unreadable, match="decimal sign"):
        to_number(written(amount, ",", "."))  # "1.234,50" is not 1.2345 and not 123450


@given(st.floats(min_value=-1e9, max_value=1e9, allow_nan=False))
def test_cells_hold_what_a_spreadsheet_shows(value: float) -> None:
    cents = round(value, 2)
    assert to_number(cents) == Decimal(format(cents, ".15g"))
    assert to_number(0.1 + 0.2) == Decimal("0.3")


@given(AMOUNTS)
def test_records_hold_plain_digits(amount: Decimal) -> None:
    text = to_decimal_text(amount)
    assert Decimal(text) == amount
    assert "E" not in text
    assert not (text.endswith("0") and "." in text)


@given(st.text(alphabet="abcxyz金额e.-_", min_size=1))
def test_what_has_no_digit_is_no_number(text: str) -> None:
    with pytest.raises(Unreadable):
        to_number(text)


@given(INSTANTS, ZONES)
def test_wall_clocks_come_back_as_the_instant_they_named(instant: datetime, zone: ZoneInfo) -> None:
    local = instant.astimezone(zone)
    wall = local.replace(tzinfo=None)
    for text in (
        f"{wall:%Y-%m-%d %H:%M:%S}",
        f"{wall:%Y/%m/%d %H:%M:%S}",
        f"{wall:%Y%m%d%H%M%S}",
        f"{wall.year}年{wall.month}月{wall.day}日 {wall.hour}时{wall.minute}分{wall.second}秒",
        f"{wall.year}/{wall.month}/{wall.day} {wall.hour}:{wall.minute:02}:{wall.second:02}",
        full_width(f"{wall:%Y-%m-%d %H:%M:%S}"),
    ):
        found = to_instant(text, zone)
        assert found.replace(tzinfo=None) == wall, text
        assert found.tzinfo is zone
        if not local.fold:  # the hour that a clock shows twice is read as the first one
            assert found.timestamp() == instant.timestamp()
    assert to_instant(f"{wall:%d.%m.%Y %H:%M:%S}", zone, ["%d.%m.%Y %H:%M:%S"]).replace(tzinfo=None) == wall


@given(INSTANTS, ZONES)
def test_an_offset_in_the_text_beats_the_declared_zone(instant: datetime, zone: ZoneInfo) -> None:
    local = instant.astimezone(zone)
    if (local.utcoffset() or timedelta()).seconds % 60 == 0:
        for text in (local.isoformat(), f"{local:%Y-%m-%dT%H:%M:%S%z}", f"{instant:%Y-%m-%dT%H:%M:%SZ}"):
            assert to_instant(text, SHANGHAI) == instant, text


@given(INSTANTS)
def test_counts_of_spreadsheets_and_unix(instant: datetime) -> None:
    local = instant.astimezone(SHANGHAI)
    serial = (local.replace(tzinfo=UTC) - datetime(1899, 12, 30, tzinfo=UTC)) / timedelta(days=1)
    assert local.fold or abs(to_instant(serial, SHANGHAI).timestamp() - instant.timestamp()) < 1
    assert to_instant(instant.timestamp(), SHANGHAI) == instant
    assert to_instant(str(int(instant.timestamp() * 1000)), SHANGHAI, ["epoch_ms"]) == instant


def test_times_that_could_be_misread_are_refused() -> None:
    for text in ("03/04/2026", "14.03.26", "2026-02-30", "2026-03-14 25:00", "1026-03-14", "gestern", "20261301"):
        with pytest.raises(Unreadable):
            to_instant(text, SHANGHAI)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.binary(), st.lists(st.integers())))
def test_anything_at_all_gives_a_value_or_a_sentence(value: object) -> None:
    for convert in (to_number, lambda v: to_instant(v, SHANGHAI), declared.to_id, declared.to_flag):
        with suppress(Unreadable):
            assert convert(value) is not None


@given(st.integers(min_value=10**10, max_value=9 * 10**10))
def test_sentences_never_show_the_value(number: int) -> None:
    reader = Reader("refunds", REFUNDS)
    row = {"单号": "R1", "订单": "A1", "状态": f"张三{number}", "金额": f"x{number}", "时间": f"李四 {number}"}
    converted = reader.convert(row.get)
    sentences = "; ".join(converted.problems)
    assert len(converted.problems) == 3
    for field in ("status (column 状态)", "refund_amount (column 金额)", "created_at (column 时间)"):
        assert field in sentences
    assert str(number) not in sentences
    assert "张三" not in sentences
    assert "李四" not in sentences
    assert "x99999999999" in sentences.replace("a", "x"), "the shape helps to find the mistake"


def test_ids_that_a_spreadsheet_has_rounded_are_refused() -> None:
    assert declared.to_id('="00420"') == "00420"
    assert declared.to_id("'4001\t") == "4001"
    assert declared.to_id("２０２６Ａ１") == "2026A1"
    assert declared.to_id(13800138000.0) == "13800138000"
    assert declared.to_id(2**60) == str(2**60)
    for value in ("4.00012E+18", float(2**60), 1.5, float("nan"), float("inf"), True, None):
        with pytest.raises(Unreadable):
            declared.to_id(value)


REFUNDS = Table.model_validate(
    {
        "columns": {
            "refund_id": "单号",
            "order_id": "订单",
            "status": "状态",
            "refund_amount": {"column": "金额", "unit": "fen"},
            "created_at": "时间",
            "phone": "手机",
            "is_money": {"constant": True},
        },
        "statuses": {"已退款": "settled", "处理中": "requested"},
        "keep": ["渠道"],
        "personal": {"联系人.备注": "name"},
    }
)


def test_a_row_becomes_a_record_and_keeps_what_was_written() -> None:
    row = {
        "单号": "R１", "订单": "A1", "状态": " 已退款 ", "金额": "１，２００", "时间": "2026/3/14 9:05", "手机": "10012345678",
        "渠道": "门店", "联系人.备注": "张三", "没人要的": "李四 10099990000",
    }  # fmt: skip
    reader = Reader("refunds", REFUNDS)
    record = reader.convert(row.get, row).record
    assert record == {
        "refund_id": "R1", "order_id": "A1", "status": "settled", "status_original": "已退款", "refund_amount": "12",
        "created_at": "2026-03-14T09:05:00+08:00", "phone": "10012345678", "is_money": True,
        "original": {"单号": "R１", "金额": "１，２００", "时间": "2026/3/14 9:05", "渠道": "门店", "联系人_备注": "张三"},
    }  # fmt: skip
    assert reader.personal() == {"phone": "phone", "original.联系人_备注": "name"}
    assert "original.*" in reader.free_text()


def test_a_level_nearer_to_the_column_decides_how_it_is_read() -> None:
    table = Table.model_validate(
        {
            "zone": "Europe/Berlin",
            "decimal_sign": ",",
            "columns": {
                "order_id": "n", "status": {"constant": "finished"}, "created_at": "t",
                "shipped_at": {"column": "s", "zone": "UTC"}, "paid_amount": "p", "postage_amount": {"column": "q", "decimal_sign": "."},
            },
        }
    )  # fmt: skip
    row = {"n": "1", "t": "2026-03-14 10:00", "s": "2026-03-14 10:00", "p": "1.234,50", "q": "1,234.50"}
    record = Reader("orders", table, declared.Formats(zone="Asia/Shanghai")).convert(row.get).record
    assert (record["created_at"], record["shipped_at"]) == ("2026-03-14T10:00:00+01:00", "2026-03-14T10:00:00+00:00")
    assert record["paid_amount"] == record["postage_amount"] == "1234.5"


def test_an_order_is_completed_from_its_lines_and_payments() -> None:
    order = {"order_id": "1", "status": "paid", "created_at": "2026-03-14T10:00:00+08:00"}
    lines = [
        {"product_id": "a", "line_amount": "30", "quantity": "3"},
        {"product_id": "b", "unit_price": "5", "paid_amount": "4"},
    ]
    payments = [
        {"amount": "30", "paid_at": "2026-03-14T10:01:00+08:00"},
        {"amount": "4", "paid_at": "2026-03-14T10:00:30+08:00"},
    ]
    assert declared.complete_order(order, lines, payments) == []
    assert (order["paid_amount"], order["is_paid"], order["paid_at"]) == ("34", True, "2026-03-14T10:01:00+08:00")
    assert [(line["line_id"], line["unit_price"], line["quantity"], line["paid_amount"]) for line in lines] == [
        ("1", "10", "3", "30"),
        ("2", "5", "1", "4"),
    ]
    assert declared.complete_order(dict(order), [lines[0], dict(lines[0])]) == ["line 1 stands twice"]
    without = {"order_id": "2", "status": "unpaid"}
    assert declared.complete_order(without, []) == [
        "paid_amount is in no column, and there are no payments or lines to add up"
    ]
    assert without["is_paid"] is False


def test_an_order_knows_what_it_waits_for() -> None:
    line = {"product_id": "a", "unit_price": "10", "quantity": "2"}
    assert declared.missing_lines({"order_id": "1"}, []) == "its lines"
    assert declared.missing_lines({"line_count": "3"}, [line]) == "2 of its 3 lines"
    assert declared.missing_lines({"line_count": "1"}, [line]) is None
    assert declared.missing_lines({"goods_amount": "30"}, [line]) == "lines for a part of its goods amount"
    assert declared.missing_lines({"goods_amount": "20"}, [line]) is None


def test_mistakes_in_a_declaration_are_sentences() -> None:
    columns = {"order_id": "a", "status": "b", "created_at": "c"}
    for entity, block, words in (
        ("orders", {"columns": {**columns, "orderid": "x"}}, "orders have no field 'orderid'; known: address"),
        ("orders", {"columns": {"order_id": "a"}}, "orders need status and created_at"),
        (
            "orders",
            {"columns": columns, "statuses": {"完成": "done"}},
            "'完成' becomes 'done', which is not one of ours: unpaid",
        ),
        ("orders", {"columns": {**columns, "status": {"constant": "done"}}}, "'done' is not one of ours"),
    ):
        with pytest.raises(ValueError, match=words):
            judge(entity, Table.model_validate(block), "tables.orders")
    for block, words in (
        ({"columns": {"a": {}}}, "either a column or a constant"),
        ({"columns": {"a": "x"}, "zone": "Asia/Peking"}, "unknown time zone 'Asia/Peking'"),
        ({"columns": {"a": "x"}, "decimal_sign": ",", "thousand_sign": ","}, "both ','"),
        ({"columns": {"a": {"column": "x", "pattern": "("}}}, "not a regular expression"),
        ({"columns": {"a": "x"}, "time_formats": ["%d.%m."]}, "has no year"),
    ):
        with pytest.raises(ValidationError, match=words):
            Table.model_validate(block)
