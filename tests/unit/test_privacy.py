"""Tokens, free text, masks and the keys of the vault. The vault itself: tests/platforms and tests/faults."""

import base64
import copy
import hmac
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmarket.privacy import KINDS, MASKED, Keyring, Tokenizer, erase, mask, normalise, open_secrets, store_secrets
from nightmarket.settings import ConfigError
from nightmarket.warehouse import connect_vault

KEY = b"a key of more than thirty-two characters"
phones = st.from_regex(r"\A1[0-9]{10}\Z")


def tokenizer(key: bytes = KEY) -> Tokenizer:
    return Tokenizer(key)


@given(st.sampled_from(KINDS), st.text(min_size=1).filter(lambda text: "*" not in text))
def test_a_token_is_stable_short_and_does_not_hold_the_value(kind: str, value: str) -> None:
    token = tokenizer().token(kind, value)
    assert token == tokenizer().token(kind, value)
    if normalise(kind, value):
        prefix, _, rest = token.partition(":")
        assert prefix == kind
        assert len(rest) == 20
        assert set(rest) <= set(string.ascii_letters + string.digits + "-_")
        assert tokenizer(b"another key of at least thirty-two").token(kind, value) != token
    else:
        assert token == ""


@given(phones)
def test_one_number_in_many_spellings_is_one_person(phone: str) -> None:
    spellings = [
        phone,
        f"+86{phone}",
        f"86-{phone}",
        f" {phone[:3]} {phone[3:7]} {phone[7:]} ",
        phone.translate(FULL_WIDTH),
    ]
    assert len({tokenizer().token("phone", text) for text in spellings}) == 1


@given(st.binary(min_size=32, max_size=100), phones)
def test_a_token_is_the_hmac_that_every_language_can_compute(key: bytes, phone: str) -> None:
    """Shops that tokenise their own lists with the same key get the same tokens."""
    digest = hmac.digest(key, f"phone:{phone}".encode(), "sha256")
    assert tokenizer(key).token("phone", phone) == "phone:" + base64.urlsafe_b64encode(digest[:15]).decode()
    assert tokenizer(key).content_hash(b"{}") == hmac.digest(key, b"content:{}", "sha256")[:16]


FULL_WIDTH = {ord(digit): ord("０") + int(digit) for digit in string.digits}


def test_kinds_do_not_mix() -> None:
    tokens = {tokenizer().token(kind, "10012345678").partition(":")[2] for kind in KINDS}
    assert len(tokens) == len(KINDS)
    with pytest.raises(ValueError, match="unknown kind"):
        tokenizer().token("shoe size", "42")


def test_masked_values_are_nobody_in_particular() -> None:
    maker = tokenizer()
    assert maker.token("nick", "小**") == maker.token("phone", "138****0001") == MASKED
    assert maker.secrets == {}


def test_only_declared_paths_change_and_the_clear_values_are_remembered() -> None:
    record = {
        "tid": 1,
        "receiver_name": "王芳",
        "receiver_phone": "",
        "nested": {"email": "A@mail.test", "other": "A@mail.test"},
        "people": [{"phone": 10012345678}, {"phone": None}, {}],
        "names": ["李伟", ""],
    }
    paths = {"receiver_name": "name", "receiver_phone": "phone", "nested.email": "email", "people[].phone": "phone",
             "names[]": "name", "absent.path": "name", "tid.deeper": "name"}  # fmt: skip
    maker = tokenizer()
    found = maker.tokenise(copy.deepcopy(record), paths)
    assert found["tid"] == 1
    assert found["receiver_phone"] == ""
    assert found["nested"]["other"] == "A@mail.test"
    assert found["receiver_name"].startswith("name:")
    assert found["nested"]["email"] == maker.token("email", "a@mail.test")
    assert [str(person.get("phone"))[:6] for person in found["people"]] == ["phone:", "None", "None"]
    assert found["names"][1] == ""
    assert set(maker.secrets.values()) == {"王芳", "A@mail.test", "10012345678", "李伟"}


@pytest.mark.parametrize(
    "text",
    [
        "请打10012345678谢谢",
        "Tel. +86 100 1234 5678.",
        "(100-1234-5678)",
        "a.b+c@mail.test来信",
        "写给:fang@xn--fiq.test，谢谢",
    ],
)
def test_numbers_and_addresses_in_free_text_become_tokens(text: str) -> None:
    maker = tokenizer()
    clean = maker.scrub(text)
    assert len(maker.secrets) == 1
    token, value = next(iter(maker.secrets.items()))
    assert token in clean
    assert value not in clean


@pytest.mark.parametrize(
    "text",
    ["4021187654321098765", "<CreateTime>1700000000</CreateTime>", "o10012345678abc", "满100减30", "A-10012345678", ""],
)
def test_other_numbers_in_free_text_stay(text: str) -> None:
    assert tokenizer().scrub(text) == text


@given(
    st.text(alphabet=string.ascii_letters + "好的，。 ", max_size=20),
    phones,
    st.text(alphabet="好的，。 ", max_size=20),
)
def test_a_number_is_found_wherever_it_stands(before: str, phone: str, after: str) -> None:
    separator = "" if not before or not before[-1].isascii() else " "
    assert phone not in tokenizer().scrub(before + separator + phone + after)


def test_the_content_hash_is_keyed_and_sees_every_change() -> None:
    assert tokenizer().content_hash(b"a") == tokenizer().content_hash(b"a")
    assert tokenizer().content_hash(b"a") != tokenizer().content_hash(b"b")
    assert tokenizer().content_hash(b"a") != tokenizer(b"another key of at least thirty-two").content_hash(b"a")


@given(st.sampled_from(("phone", "email", "name")), st.text(min_size=2, max_size=40))
def test_a_mask_never_shows_the_value(kind: str, value: str) -> None:
    assert mask(kind, value) != value or set(value) <= {"*", "@"}


def test_masks_show_a_shape() -> None:
    assert mask("phone", "10012345678") == "100****78"
    assert mask("email", "fang@mail.test") == "f***@mail.test"
    assert mask("name", "王小芳") == "王**"
    assert mask("name", "王*") == "**"


@pytest.mark.parametrize(
    "text",
    ["", "k1", "k1:short", "k1:" + base64.b64encode(bytes(31)).decode(), ":" + base64.b64encode(bytes(32)).decode()],
)
def test_malformed_vault_keys_are_refused(monkeypatch: pytest.MonkeyPatch, environment: str, text: str) -> None:
    from nightmarket import settings

    monkeypatch.setenv("NIGHTMARKET_VAULT_KEYS", text)
    settings.get_settings.cache_clear()
    with pytest.raises(ConfigError, match="NIGHTMARKET_VAULT_KEYS"):
        Keyring.from_settings()


def test_a_short_token_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="NIGHTMARKET_TOKEN_KEY is shorter than 32"):
        Tokenizer(b"short")


def test_keys_rotate_and_rows_cannot_be_swapped() -> None:
    old, new = Keyring({"k1": bytes(32)}), Keyring({"k2": bytes([1]) * 32, "k1": bytes(32)})
    key_id, blob = old.encrypt("phone:a", "10012345678")
    assert b"100" not in blob
    assert new.decrypt("phone:a", key_id, blob) == "10012345678"
    assert new.encrypt("phone:a", "x")[0] == "k2"
    with pytest.raises(ConfigError, match="wrong key or altered row"):
        old.decrypt("phone:b", key_id, blob)
    with pytest.raises(ConfigError, match="'k1' is not in NIGHTMARKET_VAULT_KEYS"):
        Keyring({"k2": bytes(32)}).decrypt("phone:a", "k1", blob)


def test_the_vault_keeps_opens_and_erases(db: Any) -> None:
    keyring, maker = Keyring.from_settings(), tokenizer()
    tokens = [maker.token("phone", f"1001234567{n}") for n in range(5)]
    assert store_secrets(db, maker.secrets, keyring) == 5
    assert store_secrets(db, maker.secrets, keyring) == 0
    with connect_vault() as vault:
        assert set(open_secrets(vault, tokens, keyring).values()) == {f"1001234567{n}" for n in range(5)}
        assert erase(vault, [tokens[0], "phone:unknown"], actor="test", reason="asked").secrets == 1
        assert tokens[0] not in open_secrets(vault, tokens, keyring)
    logged = db.execute("SELECT actor, action, detail ->> 'deleted' AS deleted FROM push.audit_log").fetchone()
    assert logged == {"actor": "test", "action": "erase", "deleted": "1"}
