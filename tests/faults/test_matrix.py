"""Platform x fault: whatever a platform did wrong, once it stops and a later run has passed, core equals the world's truth.

Each cell: a first load while the fault is on, which must end well or with one typed sentence; a later run without it; then the
numbers of core against the world's, no record without its place, and no version of a record that only repeats the one before.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from nightmarket import dates, landing, mapping, sources
from nightmarket.platforms import base, taobao, wechat_store
from nightmarket.platforms.base import PlatformError
from nightmarket.warehouse import Row
from sandbox_process import Sandbox, start_sandbox

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests" / "platforms"), str(ROOT / "include")]

from malls import differences, use_sources  # noqa: E402
from nights import one  # noqa: E402

from sandbox.faults import SPECIAL, TRANSPORT  # noqa: E402

pytestmark = pytest.mark.slow
FIRST, LATER = "2026-03-15T02:30:00+08:00", "2026-03-18T02:30:00+08:00"
HISTORY_DAYS = 400  # the world's is 374 days long
YEAR_MINUTES = 60 * 24 * 365  # windows as long as the platform allows: fewer calls, fuller pages
AFTERSALE_HOURS = 24 * 30  # 24 on the real platform: 400 windows of nothing would only cost time
ANSWER_SECONDS = 0.5  # we wait; the faults below take longer or shorter

# fault -> how it is set. Kinds that spoil what is told go on for the whole run, kinds that fail come back a few times.
FAULTS: dict[str, dict[str, Any]] = {
    "http_429": {"times": 2, "seconds": 1, "after": 2},
    "http_500": {"times": 6, "after": 3},
    "http_502": {"times": 1, "after": 1},
    "http_503": {"times": 3, "after": 2},
    "http_500_after": {"times": 1, "after": 2},
    "timeout_before": {"times": 1, "after": 3, "seconds": 0.8},
    "timeout_after": {"times": 1, "after": 3, "seconds": 0.8},
    "cut": {"times": 2, "after": 3},
    "cut_before": {"times": 2, "after": 3},
    "truncated_json": {"times": 1, "after": 3},
    "garbage": {"times": 1, "after": 2},
    "empty": {"times": 1, "after": 3},
    "slow": {"times": 2, "after": 2, "seconds": 0.2},
    "call_limit": {"times": 1, "after": 2, "seconds": 1},
    "platform_busy": {"times": 2, "after": 2},
    "expired_token": {"times": 1, "after": 3},
    "revoked_token": {"times": -1, "after": 3},
    "wrong_clock": {"times": -1, "seconds": 300},
    "duplicate_page": {"times": -1},
    "shifting_page": {"times": 6},
    "empty_last_page": {"times": 2},
    "ids_as_numbers": {"times": -1},
    "null_fields": {"times": -1},
    "missing_fields": {"times": -1},
    "emoji": {"times": -1},
}


HARMFUL = ("http_500", "revoked_token", "missing_fields")  # no first run can end well under these


def has(platform: str, kind: str) -> bool:
    return kind in TRANSPORT or platform in SPECIAL.get(kind, ())


# ------------------------------------------------------------------------------------------------- what must be right
Truth = Callable[[psycopg.Connection[Row], str, dict[str, Any]], dict[str, Any]]  # what differs, {} when nothing does


def taobao_truth(db: psycopg.Connection[Row], source_id: str, truth: dict[str, Any]) -> dict[str, Any]:
    wanted = {
        "orders": truth["trades"],
        "paid_orders": truth["paid_orders"],
        "lines": truth["lines"],
        "refunds": truth["refunds"] + truth["refunds_open"],
        "refunds_settled": truth["refunds"],
        "refund_amount": truth["refund_fee"],
        "customers": truth["members"],
    }
    found = differences(db, source_id, wanted)
    sums = {
        "paid_line_value": "SELECT sum(goods_amount) FROM core.orders WHERE is_paid",
        "reviews_readable": "SELECT count(*) FROM core.reviews WHERE created_at >= %(now)s::timestamptz - interval '180 days'",
    }
    for name, query in sums.items():
        value = one(db, query, {"now": truth["now"]})
        if Decimal(value) != Decimal(truth[name]):
            found[name] = (value, truth[name])
    return found


def shop(name: str, *left_out: str, only_made_refunds: bool = False) -> Truth:
    """A shop of the world; some platforms know a refund only once it is made."""

    def look(db: psycopg.Connection[Row], source_id: str, truth: dict[str, Any]) -> dict[str, Any]:
        wanted = truth["shops"][name]
        if only_made_refunds:
            wanted = wanted | {"refunds": wanted["refunds_settled"]}
        return differences(db, source_id, wanted, *left_out)

    return look


def counts(part: str = "", **queries: str) -> Truth:
    """Plain numbers of the world, or of one part of it."""

    def look(db: psycopg.Connection[Row], source_id: str, truth: dict[str, Any]) -> dict[str, Any]:
        wanted = truth[part] if part else truth
        found = {name: one(db, query) for name, query in queries.items()}
        return {name: (value, wanted[name]) for name, value in found.items() if value != wanted[name]}

    return look


@dataclass(frozen=True)
class Case:
    """One platform of the matrix."""

    source_id: str
    kind: str
    truth: Truth
    streams: tuple[str, ...] = ()  # empty: all there are
    page: int = 4  # rows a page, so that the smallest world has several
    options: Mapping[str, Any] = field(default_factory=dict)
    example: str = ""  # of docs/connections/rest.md


REST_EXAMPLES = re.findall(
    r"```yaml\n(sources:\n.*?)```", (ROOT / "docs" / "connections" / "rest.md").read_text(encoding="utf-8"), re.DOTALL
)
PLATFORMS: dict[str, Case] = {
    # items: 4,070 of them, see test_taobao.py
    "taobao": Case("taobao_flagship", "shop", taobao_truth, ("trades", "refunds", "rates", "members"), page=8),
    "jd": Case("jd_pop", "shop", shop("jd", "customers")),
    "youzan": Case("youzan_mall", "shop", shop("youzan", "products"), options={"reviews": True}),
    "weidian": Case(
        "weidian_shop",
        "shop",
        shop("weidian", "customers", "reviews", "products", "refunds", "refunds_settled", "refund_amount"),
    ),
    "wechat_store": Case("wechat_store", "shop", shop("wechat_store", "reviews")),
    "shopify": Case("shopify_mall", "shop", shop("shopify", "reviews", only_made_refunds=True)),
    "woocommerce": Case("woo_mall", "shop", shop("woocommerce", only_made_refunds=True)),
    "rest": Case("stall_shop", "shop", shop("weidian"), example=REST_EXAMPLES[0]),
    "wechat_official": Case(
        "wechat_official",
        "social",
        counts(followers="SELECT count(*) FROM core.followers WHERE is_following"),
        ("followers",),
    ),
    "weibo": Case(
        "weibo_brand",
        "social",
        counts(
            "weibo",
            posts="SELECT count(*) FROM core.social_posts",
            comments="SELECT count(*) FROM core.social_comments WHERE kind = 'comment' AND post_id IS NOT NULL",
            mentions="SELECT count(*) FROM core.social_comments WHERE kind = 'mention' AND post_id IS NULL",
        ),
        page=40,
    ),
    "own_pages": Case(
        "own_pages",
        "pages",
        counts(
            events="SELECT count(*) FROM raw.heads WHERE stream = 'events'",
            bound_phones="SELECT count(DISTINCT payload #>> '{data,phone}') FROM raw.records WHERE payload ->> 'kind' = 'binding'",
        ),
        page=10,
    ),
}
CELLS = [
    pytest.param(platform, fault, marks=pytest.mark.xdist_group(f"matrix-{platform}"), id=f"{platform}-{fault}")
    for platform in PLATFORMS
    for fault in FAULTS
    if has(platform, fault)
]


# ----------------------------------------------------------------------------------------------------------- fixtures
@pytest.fixture(scope="module")
def sandbox_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """The smallest world that has everything."""
    process, sandbox = start_sandbox(
        tmp_path_factory.mktemp("matrix"), "--customers", "30", "--seed", "7", "--anchor", "2026-03-14"
    )
    yield sandbox
    process.terminate()
    process.wait(10)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short patience and short pauses: what is tested is what is done after them."""
    monkeypatch.setattr(base, "READ_SECONDS", ANSWER_SECONDS)
    monkeypatch.setattr(base, "_pause", lambda state: 0.01)
    monkeypatch.setattr(taobao, "HISTORY_WINDOW", timedelta(days=400))
    monkeypatch.setattr(taobao, "SOLD_WINDOW", timedelta(days=100))
    monkeypatch.setattr(wechat_store, "AFTERSALE_SPAN", timedelta(hours=AFTERSALE_HOURS))


def write_source(monkeypatch: pytest.MonkeyPatch, folder: Path, platform: str) -> str:
    """A sources.yaml with the platform's source and every stream it has; returns the source's id."""
    case = PLATFORMS[platform]
    if case.example:
        block = yaml.safe_load(case.example)["sources"][case.source_id]
        names: Iterable[str] = block["streams"]
    else:
        module = sources.PLATFORMS[platform]
        block = {
            "platform": platform,
            "kind": case.kind,
            "name": platform,
            "conn_id": case.source_id,
            "options": dict(case.options),
        }
        names = case.streams or module.streams(module.Options.model_validate(block["options"]))
    block["history_days"] = HISTORY_DAYS
    block["streams"] = {name: {"window_minutes": YEAR_MINUTES} for name in names}
    use_sources(monkeypatch, folder, yaml.safe_dump({"sources": {case.source_id: block}}, allow_unicode=True))
    return case.source_id


def run(source_id: str, run_id: str, page: int) -> list[str]:
    """Read and map everything; the sentences of what failed, each of a type that says what to do about it."""
    sentences = []
    for stream in sources.source(source_id).streams:
        try:
            landing.land(source_id, stream, run_id=run_id, until=dates.now(), page_sizes={"*": page})
        except PlatformError as error:
            sentences.append(str(error))
    mapping.map_source(source_id, run_id=run_id)
    mapping.resolve_members(run_id=run_id)
    return sentences


# Reviews that TOP does not show any more, half a year after they were written, cannot be had again.
STILL_UNUSABLE = """
SELECT stream, reason FROM raw.rejects
WHERE resolved_at IS NULL
  AND NOT (stream = 'rates' AND (payload ->> 'created')::timestamp AT TIME ZONE '+08' < %(now)s::timestamptz - interval '180 days')
"""
REPEATED = """
SELECT count(*) FROM (
    SELECT payload = lag(payload) OVER (PARTITION BY source_id, stream, record_key ORDER BY record_id) AS is_repeated FROM raw.records
) AS r WHERE is_repeated
"""


# ------------------------------------------------------------------------------------------------------------- matrix
@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(("platform", "fault"), CELLS)
def test_core_equals_the_truth_after_the_fault(
    platform: str,
    fault: str,
    db: psycopg.Connection[Row],
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    set_clock: Callable[[str], None],
) -> None:
    case = PLATFORMS[platform]
    source_id = write_source(monkeypatch, tmp_path, platform)
    sandbox.control("POST", "/settings", {"wechat_store_aftersale_hours": AFTERSALE_HOURS})
    sandbox.control("POST", "/faults", {"faults": [{"platform": platform, "kind": fault, **FAULTS[fault]}]})
    sentences = run(source_id, "first", case.page)
    for sentence in sentences:
        assert sentence.startswith(f"{platform}, ")
        assert "\n" not in sentence
        assert len(sentence) < 300
    fired = sandbox.control("GET", "/counters")["faults_fired"]
    assert fired.get(platform, {}).get(fault, 0) > 0, "the fault never happened: this cell proves nothing"

    if fault in HARMFUL:
        harm = sentences or case.truth(db, source_id, sandbox.control("GET", "/truth"))
        assert harm, "the fault did no harm: this cell proves nothing"

    sandbox.control("POST", "/faults", {"faults": []})
    set_clock(LATER)
    sandbox.control("POST", "/clock", {"now": LATER})
    assert run(source_id, "later", case.page) == []
    assert case.truth(db, source_id, sandbox.control("GET", "/truth")) == {}
    open_rejects = db.execute(STILL_UNUSABLE, {"now": LATER}).fetchall()
    assert [(row["stream"], row["reason"]) for row in open_rejects] == []
    assert one(db, REPEATED) == 0
