"""Every mistake in a configuration file is one sentence that names file, line, field and what to do."""

from pathlib import Path
from typing import Any

import pytest

from nightmarket import landing, settings, sources
from nightmarket.settings import ConfigError

GOOD = """\
sources:
  shop_one:
    platform: taobao
    kind: shop
    name: 一号店
    conn_id: shop_one
    streams:
      trades: {overlap_minutes: 30}
      refunds: {}
"""


def load(folder: Path, text: str) -> dict[str, sources.SourceConfig]:
    path = folder / "sources.yaml"
    path.write_text(text, encoding="utf-8")
    return sources.load_sources(path)


def test_a_good_file(tmp_path: Path) -> None:
    source = load(tmp_path, GOOD)["shop_one"]
    assert (source.source_id, source.platform, list(source.streams)) == ("shop_one", "taobao", ["trades", "refunds"])
    assert (source.currency_code, source.time_zone, source.schedule) == ("CNY", "Asia/Shanghai", None)


def test_our_own_file_is_good() -> None:
    ours = sources.load_sources(settings.ROOT / "include" / "config" / "sources.yaml")
    assert set(ours) >= {"taobao_flagship", "wechat_official", "own_pages"}
    assert ours["own_pages"].account == "wechat_official"
    for source in ours.values():
        assert source.schedule


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "words"),
    [
        ("    kind: shop", "    kind: shop\n    colour: red", 5, "sources.shop_one.colour", "unknown key"),
        ("    kind: shop\n", "", 2, "sources.shop_one.kind", "required key is missing"),
        ("kind: shop", "kind: stall", 4, "sources.shop_one.kind", "'shop', 'social' or 'pages'"),
        ("platform: taobao", "platform: taoba", 3, "sources.shop_one.platform", "unknown platform 'taoba'; known: "),
        ("overlap_minutes: 30", "overlap_minutes: soon", 8, "sources.shop_one.streams.trades.overlap_minutes", "integer"),
        ("overlap_minutes: 30", "overlap_minutes: -1", 8, "sources.shop_one.streams.trades.overlap_minutes", "greater than or equal to 0"),
        ("overlap_minutes: 30", "overlap: 30", 8, "sources.shop_one.streams.trades.overlap", "Known keys here: overlap_minutes, window_minutes"),
        ("refunds: {}", "reviews: {}", 9, "sources.shop_one.streams.reviews", "taobao has no stream 'reviews'; known: "),
        ("conn_id: shop_one", "conn_id: Shop One", 6, "sources.shop_one.conn_id", "pattern"),
        ("    conn_id", "    schedule: every night\n    conn_id", 6, "sources.shop_one.schedule", "not a cron expression"),
        ("    conn_id", "    time_zone: Asia/Shangai\n    conn_id", 6, "sources.shop_one.time_zone", "unknown time zone"),
        ("    conn_id", "    account: nobody\n    conn_id", 6, "sources.shop_one.account", "there is no source 'nobody'; known: shop_one"),
        ("  shop_one:", "  Shop-One:", 2, "sources.Shop-One", "a source id is made of lower-case letters"),
        ("    kind: shop", "    kind: shop\n    kind: social", 5, "kind", "stands twice"),
        ("sources:", "source:", 1, "source", "Known keys here: sources"),
        ("name: 一号店", "name: [", 7, "", "not valid YAML"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_line_and_field(
    tmp_path: Path, old: str, new: str, line: int, field: str, words: str
) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    sentence = str(caught.value)
    assert f"sources.yaml:{line}: " in sentence
    assert f" {field}" in sentence
    assert words in sentence
    assert "\n" not in sentence


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sources\.yaml: this file does not exist"):
        sources.load_sources(tmp_path / "sources.yaml")
    (tmp_path / "sources.yaml").write_bytes(b"sources: \xff")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 9"):
        sources.load_sources(tmp_path / "sources.yaml")


def test_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sources\.yaml:1: "):
        load(tmp_path, "")


def test_unknown_sources_and_streams_are_named(environment: str) -> None:
    with pytest.raises(sources.UnknownSource, match=r"no source 'shop_two'; known: "):
        sources.source("shop_two")
    from nightmarket import dates

    with pytest.raises(sources.UnknownSource, match=r"'taobao_flagship' has no stream 'followers'; known: .*trades"):
        landing.land("taobao_flagship", "followers", run_id="r", until=dates.now())


def test_a_missing_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIGHTMARKET_WAREHOUSE_DSN", raising=False)
    settings.get_settings.cache_clear()
    try:
        with pytest.raises(ConfigError, match="environment variable NIGHTMARKET_WAREHOUSE_DSN: field required"):
            settings.get_settings()
    finally:
        settings.get_settings.cache_clear()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"host": "http://x", "login": "a", "password": "b", "extra": {"k": 1}}', ("http://x", "a", "b", {"k": 1})),
        ('{"host": "x", "extra": "{\\"k\\": 1}"}', ("x", "", "", {"k": 1})),
        ("http://user:p%40ss@host:80/?k=v", ("host", "user", "p@ss", {"k": "v"})),
    ],
)
def test_connections_are_read_in_both_of_airflows_forms(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: Any
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", text)
    found = settings.credentials("shop")
    assert (found.host, found.login, found.password, dict(found.extra)) == expected
    assert expected[2] not in repr(found) or not expected[2]


def test_connections_that_are_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_SHOP", raising=False)
    with pytest.raises(ConfigError, match="AIRFLOW_CONN_SHOP is not set"):
        settings.credentials("shop")
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", '{"password": "s3cret", ')
    with pytest.raises(ConfigError, match="not valid JSON") as caught:
        settings.credentials("shop")
    assert "s3cret" not in str(caught.value)
