"""Members: connected components of shared evidence, by night and from scratch, with the guard against shared values."""

import itertools
import random
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nights import everything, one

from nightmarket.warehouse import Row, run_sql

NIGHT = "2026-03-15T02:30:00+08:00"


def add(db: psycopg.Connection[Row], kind: str, value: str, seen: str = "2026-01-01") -> int:
    return int(
        one(
            db,
            "INSERT INTO core.identities (kind, value, source_id, first_seen_at) VALUES (%s, %s, 's', %s)"
            " ON CONFLICT (kind, value) DO UPDATE SET value = excluded.value RETURNING identity_id",
            (kind, value, seen),
        )
    )


def tie(db: psycopg.Connection[Row], a: int, b: int, evidence: str = "trade") -> None:
    db.execute(
        "INSERT INTO core.identity_links VALUES (%s, %s, 's', %s, '2026-01-02') ON CONFLICT DO NOTHING",
        (min(a, b), max(a, b), evidence),
    )


def resolve(db: psycopg.Connection[Row], at: str = NIGHT) -> None:
    with db.transaction():
        run_sql(db, "core/members/members.sql", {"as_of_at": at, "run_id": "r"})


def groups(db: psycopg.Connection[Row]) -> set[frozenset[int]]:
    rows = db.execute("SELECT array_agg(identity_id) AS ids FROM core.member_identities GROUP BY member_id")
    return {frozenset(row["ids"]) for row in rows}


def member_of(db: psycopg.Connection[Row], identity: int) -> int:
    return int(one(db, "SELECT member_id FROM core.member_identities WHERE identity_id = %s", (identity,)))


def wipe_members(db: psycopg.Connection[Row]) -> None:
    for table in ("member_merges", "member_identities", "members", "identity_links", "identities"):
        db.execute(f"DELETE FROM core.{table}")  # type: ignore[arg-type]


def test_a_chain_of_evidence_is_one_person(db: psycopg.Connection[Row]) -> None:
    buyer, phone = add(db, "taobao_open_uid", "b"), add(db, "phone", "phone:1")
    openid, unionid = add(db, "wechat_openid", "o"), add(db, "wechat_unionid", "u")
    stranger = add(db, "wechat_openid", "x")
    for a, b in ((buyer, phone), (phone, openid), (openid, unionid)):
        tie(db, a, b)
    resolve(db)
    assert groups(db) == {frozenset({buyer, phone, openid, unionid}), frozenset({stranger})}
    assert one(db, "SELECT count(*) FROM core.members WHERE absorbed_by IS NULL") == 2
    assert one(db, "SELECT count(*) FROM core.member_merges") == 0, "nobody was a member before"


def test_two_buyers_who_share_a_phone_are_one_household_and_the_smaller_id_survives(
    db: psycopg.Connection[Row],
) -> None:
    first, second = add(db, "taobao_open_uid", "a", "2025-05-01"), add(db, "taobao_open_uid", "b", "2025-03-01")
    resolve(db)
    older, younger = member_of(db, first), member_of(db, second)
    phone = add(db, "phone", "phone:1")
    tie(db, first, phone)
    tie(db, second, phone)
    resolve(db, "2026-03-16T02:30:00+08:00")
    assert {member_of(db, i) for i in (first, second, phone)} == {min(older, younger)}
    merge = db.execute("SELECT * FROM core.member_merges").fetchone()
    assert merge is not None
    assert (merge["survivor_id"], merge["absorbed_id"]) == (min(older, younger), max(older, younger))
    assert {link["evidence"] for link in merge["evidence"]["links"]} == {"trade"}
    assert one(db, "SELECT absorbed_by FROM core.members WHERE member_id = %s", (max(older, younger),)) == min(
        older, younger
    )
    # the person was first seen when the earlier of the two was
    seen = one(db, "SELECT first_seen_at::date::text FROM core.members WHERE member_id = %s", (min(older, younger),))
    assert seen == "2025-03-01"


def test_a_merge_of_merged_members_leads_straight_to_the_survivor(db: psycopg.Connection[Row]) -> None:
    people = [add(db, "taobao_open_uid", f"b{n}") for n in range(3)]
    resolve(db)
    for n in (2, 1):
        phone = add(db, "phone", f"phone:{n}")
        tie(db, people[n - 1], phone)
        tie(db, people[n], phone)
        resolve(db)
    survivor = member_of(db, people[0])
    absorbed = db.execute("SELECT absorbed_by FROM core.members WHERE member_id <> %s", (survivor,)).fetchall()
    assert [row["absorbed_by"] for row in absorbed] == [survivor, survivor]


def test_a_night_without_news_changes_nothing(db: psycopg.Connection[Row]) -> None:
    ids = [add(db, "phone" if n % 2 else "taobao_open_uid", f"v{n}") for n in range(40)]
    for a, b in itertools.pairwise(ids):
        if a % 3:
            tie(db, a, b)
    resolve(db)
    before = everything(db)
    resolve(db, "2026-04-01T00:00:00+08:00")
    assert everything(db) == before


@pytest.mark.parametrize(("sharers", "is_one_person"), [(10, True), (11, False)])
def test_a_value_shared_by_more_than_ten_links_nothing(
    db: psycopg.Connection[Row], sharers: int, is_one_person: bool
) -> None:
    courier = add(db, "phone", "phone:courier")
    buyers = [add(db, "taobao_open_uid", f"b{n}") for n in range(sharers)]
    for buyer in buyers:
        tie(db, courier, buyer)
    resolve(db)
    assert len(groups(db)) == (1 if is_one_person else sharers + 1)


def test_the_guard_counts_per_kind(db: psycopg.Connection[Row]) -> None:
    """Six buyers and six openids behind one phone are a large family, not a courier."""
    phone = add(db, "phone", "phone:1")
    for n in range(6):
        tie(db, phone, add(db, "taobao_open_uid", f"b{n}"))
        tie(db, phone, add(db, "wechat_openid", f"o{n}"))
    resolve(db)
    assert len(groups(db)) == 1


def test_a_group_falls_apart_when_its_tie_becomes_a_hub(db: psycopg.Connection[Row]) -> None:
    courier = add(db, "phone", "phone:courier")
    buyers = [add(db, "taobao_open_uid", f"b{n}") for n in range(10)]
    own_phone = add(db, "phone", "phone:own")
    for buyer in buyers:
        tie(db, courier, buyer)
    tie(db, buyers[3], own_phone)
    resolve(db)
    together = member_of(db, courier)
    tie(db, courier, add(db, "taobao_open_uid", "eleventh"))
    resolve(db)
    assert frozenset({buyers[3], own_phone}) in groups(db)
    assert len(groups(db)) == 12
    assert member_of(db, courier) == together, "the group with the smallest identity keeps the member"
    assert one(db, "SELECT count(DISTINCT member_id) FROM core.member_identities") == 12


def test_a_merge_is_undone_by_revoking_its_links(db: psycopg.Connection[Row]) -> None:
    first, second, phone = (
        add(db, "taobao_open_uid", "a"), add(db, "taobao_open_uid", "b"), add(db, "phone", "phone:1"))  # fmt: skip
    tie(db, first, phone)
    resolve(db)
    kept = member_of(db, first)
    tie(db, second, phone)
    resolve(db)
    assert member_of(db, second) == kept
    db.execute("UPDATE core.identity_links SET revoked_at = now() WHERE %s IN (identity_a, identity_b)", (second,))
    tie(db, second, phone)  # the same evidence again, as the next trade would bring it
    resolve(db)
    assert groups(db) == {frozenset({first, phone}), frozenset({second})}
    assert (member_of(db, first), member_of(db, second) == kept) == (kept, False)
    before = everything(db)
    resolve(db)
    assert everything(db) == before


def test_a_long_chain_is_one_person(db: psycopg.Connection[Row]) -> None:
    ids = [add(db, ("phone", "taobao_open_uid")[n % 2], f"v{n}") for n in range(300)]
    order = ids[:]
    random.Random(5).shuffle(order)
    for a, b in itertools.pairwise(order):
        tie(db, a, b)
    resolve(db)
    assert groups(db) == {frozenset(ids)}


@settings(max_examples=25, database=None)
@given(data=st.data())
def test_nights_in_any_order_give_the_groups_of_a_full_rebuild(db: psycopg.Connection[Row], data: Any) -> None:
    """Evidence in any order, in any number of nights: the same people as union-find over all of it at once."""
    wipe_members(db)
    kinds = ("phone", "taobao_open_uid", "wechat_openid")
    ids = [add(db, kinds[n % 3], f"v{n}") for n in range(data.draw(st.integers(2, 40), label="identities"))]
    pairs = data.draw(st.lists(st.tuples(st.sampled_from(ids), st.sampled_from(ids)), max_size=60), label="links")
    pairs = [(a, b) for a, b in pairs if a != b]
    nights = data.draw(st.integers(1, 5), label="nights")
    for number in range(nights):
        for a, b in pairs[number::nights]:
            tie(db, a, b)
        resolve(db)
    assert groups(db) == union_find(db)
    by_nights = groups(db)
    smallest = {group: min(member_of(db, i) for i in group) for group in by_nights}
    assert len(set(smallest.values())) == len(by_nights)
    for table in ("member_merges", "member_identities", "members"):
        db.execute(f"DELETE FROM core.{table}")  # type: ignore[arg-type]
    resolve(db)
    assert groups(db) == by_nights


def union_find(db: psycopg.Connection[Row]) -> set[frozenset[int]]:
    """The expected groups, computed outside of SQL: hubs first, then plain union-find."""
    kind = {row["identity_id"]: row["kind"] for row in db.execute("SELECT identity_id, kind FROM core.identities")}
    links = [
        (r["identity_a"], r["identity_b"]) for r in db.execute("SELECT identity_a, identity_b FROM core.identity_links")
    ]
    degree: dict[tuple[int, str], set[int]] = {}
    for a, b in links:
        for x, y in ((a, b), (b, a)):
            if kind[x] != kind[y]:
                degree.setdefault((x, kind[y]), set()).add(y)
    hubs = {x for (x, _), others in degree.items() if len(others) > 10}
    parent = {identity: identity for identity in kind}

    def root(x: int) -> int:
        while parent[x] != x:
            x = parent[x]
        return x

    for a, b in links:
        if a not in hubs and b not in hubs:
            parent[root(a)] = root(b)
    found: dict[int, set[int]] = {}
    for identity in kind:
        found.setdefault(root(identity), set()).add(identity)
    return {frozenset(group) for group in found.values()}
