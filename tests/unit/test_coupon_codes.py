"""Coupon codes: nobody guesses one, nobody mistypes one into another, and none is shown where it need not be."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nightmarket.campaigns.codes import ALPHABET, GROUP, LENGTH, is_sound, make_code
from nightmarket.campaigns.config import Stock
from nightmarket.privacy import mask, normalise

CODES = st.builds(make_code)
PLACES = st.integers(0, LENGTH - 1)


def plain(code: str) -> str:
    return normalise("coupon", code)


@given(CODES)
def test_a_new_code_is_sound_however_it_is_typed(code: str) -> None:
    assert is_sound(code)
    assert is_sound(code.lower().replace("-", " "))
    assert [len(part) for part in code.split("-")] == [GROUP] * (LENGTH // GROUP)
    assert set(plain(code)) <= set(ALPHABET)


@given(CODES, PLACES, st.sampled_from(ALPHABET))
def test_any_single_wrong_character_is_seen(code: str, place: int, other: str) -> None:
    text = plain(code)
    wrong = text[:place] + other + text[place + 1 :]
    assert is_sound(wrong) == (wrong == text)


@given(CODES, PLACES, PLACES)
def test_any_two_swapped_characters_are_seen(code: str, one: int, two: int) -> None:
    text = list(plain(code))
    text[one], text[two] = text[two], text[one]
    assert is_sound("".join(text)) == ("".join(text) == plain(code))


@pytest.mark.parametrize("text", ["", "A", "0000-0000-0000-0000-0000", "券券券券", "A" * (LENGTH + 1), "O" * LENGTH])
def test_what_is_no_code_of_ours(text: str) -> None:
    assert not is_sound(text)


def test_nobody_guesses_one() -> None:
    assert (LENGTH - 1) * math.log2(len(ALPHABET)) > 80  # bits by chance, beside the checksum
    assert len(set(ALPHABET)) == 23
    assert not set("0OQ1IL2Z5S8BG") & set(ALPHABET)
    codes = [make_code() for _ in range(5000)]
    assert len(set(codes)) == len(codes)
    for place in range(LENGTH):  # every character everywhere, the checksum too
        assert {plain(code)[place] for code in codes} == set(ALPHABET)


@given(CODES)
def test_a_masked_code_tells_too_little_to_use(code: str) -> None:
    shown = mask("coupon", code)
    assert len(shown) == 8
    assert plain(code)[:-GROUP] not in shown


def test_short_codes_of_lists_are_masked_whole() -> None:
    assert mask("coupon", "A1B2C3") == "****"


GOOD = {
    "issuer": "own",
    "name": "满99减20",
    "face_amount": 20,
    "minimum_amount": 99,
    "budget_count": 5,
    "valid_to": "2028-12-31",
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"valid_to": None}, "a stock of own needs valid_to"),
        ({"issuer": "points"}, "a stock of points needs points_price"),
        (
            {"platform_stock_id": "9856001"},
            "a stock of own has no platform_stock_id; it may say valid_to, valid_from, valid_days",
        ),
        ({"points_price": 100}, "a stock of own has no points_price"),
        (
            {"issuer": "taobao_benefit", "account": "taobao_flagship"},
            "a stock of taobao_benefit needs platform_stock_id",
        ),
        (
            {"issuer": "wechat_pay", "valid_to": None, "platform_stock_id": "abc"},
            "wechat_pay numbers its stocks with up to 20 digits",
        ),
        ({"valid_from": "2029-01-01"}, "valid_to is 2028-12-31, before valid_from, 2029-01-01"),
        ({"face_amount": 0}, "greater than 0"),
        ({"issuer": "paper"}, "Input should be 'wechat_pay', 'own'"),
    ],
)
def test_a_mistake_in_a_stock_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Stock.model_validate(GOOD | changes)


def test_who_can_have_a_coupon_depends_on_the_issuer() -> None:
    assert Stock.model_validate(GOOD).receiver_kind is None
    benefit = GOOD | {
        "issuer": "taobao_benefit", "account": "shop", "platform_stock_id": "1", "detail_id": "2", "benefit_type": "1",
    }  # fmt: skip
    assert Stock.model_validate(benefit).receiver_kind == "taobao_open_uid"
    assert Stock.model_validate(benefit | {"receiver": "ouid"}).receiver_kind == "taobao_ouid"
