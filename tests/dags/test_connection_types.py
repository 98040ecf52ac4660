"""Airflow's connection form knows our platforms by their own words, and its test button asks the platform."""

import importlib
from typing import Any

import pytest

from nightmarket.orchestration import platform_hooks
from nightmarket.orchestration.connection_types import FORMS, class_name, connection_type, get_provider_info
from nightmarket.settings import use_credentials_from
from nightmarket.sources import PLATFORMS


def test_every_platform_has_a_form() -> None:
    assert set(PLATFORMS) <= set(FORMS)
    for platform, form in FORMS.items():
        assert form.name
        assert any((form.host, form.login, form.password)), platform
        for name, extra in form.extras.items():
            assert extra.label, f"{platform}.{name}"


def test_airflow_finds_the_types_through_the_entry_point() -> None:
    from airflow.providers_manager import ProvidersManager

    hooks = ProvidersManager().hooks
    for platform in FORMS:
        assert connection_type(platform) in hooks, f"reinstall the project: {platform} is not in its entry point"


def test_every_hook_class_is_where_the_provider_says() -> None:
    for entry in get_provider_info()["connection-types"]:
        module, _, name = entry["hook-class-name"].rpartition(".")
        hook = getattr(importlib.import_module(module), name)
        assert hook.conn_type == entry["connection-type"]
        assert hook.hook_name == entry["hook-name"]


def test_what_is_secret_is_hidden_in_the_form_and_masked_by_its_name() -> None:
    from airflow.sdk._shared.secrets_masker import should_hide_value_for_key

    for platform, form in FORMS.items():
        for name, extra in form.extras.items():
            assert (extra.schema()["schema"].get("format") == "password") == extra.secret
            if extra.secret:
                assert should_hide_value_for_key(name), f"{platform}.{name} would be shown in clear"


@pytest.mark.parametrize(
    ("secret", "works", "words"), [(None, True, "the access key LTAI… works"), ("wrong", False, "secret")]
)
def test_the_test_button_asks_a_vendor_of_sms(
    environment: str, sandbox: Any, monkeypatch: pytest.MonkeyPatch, secret: str | None, works: bool, words: str
) -> None:
    import json
    import os

    if secret:
        connection = json.loads(os.environ["AIRFLOW_CONN_SMS_ALIYUN"]) | {"password": secret}
        monkeypatch.setenv("AIRFLOW_CONN_SMS_ALIYUN", json.dumps(connection))
    use_credentials_from(None)
    answer, sentence = getattr(platform_hooks, class_name("sms_aliyun"))("sms_aliyun").test_connection()
    assert (answer, words in sentence) == (works, True), sentence


@pytest.mark.parametrize(("secret", "works", "words"), [(None, True, "works for shop"), ("wrong", False, "signature")])
def test_the_test_button_asks_the_platform(
    environment: str, sandbox: Any, monkeypatch: pytest.MonkeyPatch, secret: str | None, works: bool, words: str
) -> None:
    import json
    import os

    if secret:
        connection = json.loads(os.environ["AIRFLOW_CONN_TAOBAO_FLAGSHIP"]) | {"password": secret}
        monkeypatch.setenv("AIRFLOW_CONN_TAOBAO_FLAGSHIP", json.dumps(connection))
    use_credentials_from(None)
    hook = getattr(platform_hooks, class_name("taobao"))("taobao_flagship")
    answer, sentence = hook.test_connection()
    assert (answer, words in sentence) == (works, True), sentence
