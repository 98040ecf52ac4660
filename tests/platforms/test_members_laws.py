"""Nights and a full rebuild give the same groups and the same ids, whatever happens to the evidence and in which order; merges are
taken back. The reference is written down here in plain Python: groups by repeated smallest label, members by heads."""

import os
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nights import everything, one
from test_members import NIGHT, add, groups, member_of, resolve, tie, wipe_members
from typer.testing import CliRunner

from nightmarket import mapping, members
from nightmarket.cli import app
from nightmarket.warehouse import Row, connect

LAW = settings(max_examples=25, database=None)
KINDS = ("phone", "taobao_open_uid", "wechat_openid")
LIMIT = 3  # sharers: small, so that hubs come and go in small examples
LATER = "2026-03-16T02:30:00+08:00"
runner = CliRunner()


@pytest.fixture(autouse=True)
def numbering(environment: str) -> None:
    """Members are numbered from 1 again in every example; the loading role may not do that by itself."""
    with connect(os.environ["NIGHTMARKET_ADMIN_DSN"]) as owner:
        owner.execute("GRANT SELECT, UPDATE ON SEQUENCE core.members_member_id_seq TO nightmarket_etl")


@dataclass
class Reference:
    """What the house promises, naively: who is in force, whose heads are where."""

    limit: int = LIMIT
    heads: dict[int, int] = field(default_factory=dict)  # member -> head

    def resolve(self, db: psycopg.Connection[Row]) -> dict[int, int]:
        """identity -> member after a night with this evidence; members are numbered as they are made."""
        label = self.labels(db)
        who: dict[int, int] = {}
        for group in sorted(set(label.values())):
            held = [member for member, head in self.heads.items() if label[head] == group]
            if not held:
                held = [max(self.heads, default=0) + 1]
                self.heads[held[0]] = group
            who |= {identity: min(held) for identity, of in label.items() if of == group}
        return who

    def labels(self, db: psycopg.Connection[Row]) -> dict[int, int]:
        """identity -> the smallest identity of its group."""
        kind = {row["identity_id"]: row["kind"] for row in db.execute("SELECT identity_id, kind FROM core.identities")}
        rows = db.execute("SELECT identity_a AS a, identity_b AS b, revoked_at FROM core.identity_links").fetchall()
        revoked = {(row["a"], row["b"]) for row in rows if row["revoked_at"]}
        pairs = {(row["a"], row["b"]) for row in rows} - revoked
        sharers: dict[tuple[int, str], int] = {}
        for a, b in pairs:
            for x, y in ((a, b), (b, a)):
                if kind[x] != kind[y]:
                    sharers[x, kind[y]] = sharers.get((x, kind[y]), 0) + 1
        hubs = {x for (x, _), count in sharers.items() if count > self.limit}
        label = {identity: identity for identity in kind}
        while True:
            before = dict(label)
            for a, b in pairs:
                if not {a, b} & hubs:
                    label[a] = label[b] = min(label[a], label[b])
            if label == before:
                return label


def set_limit(db: psycopg.Connection[Row], limit: int) -> None:
    db.execute("UPDATE core.identity_rules SET max_sharers = %s", (limit,))


def who_is_who(db: psycopg.Connection[Row]) -> dict[int, int]:
    return {
        r["identity_id"]: r["member_id"]
        for r in db.execute("SELECT identity_id, member_id FROM core.member_identities")
    }


def state(db: psycopg.Connection[Row]) -> dict[str, list[tuple[Any, ...]]]:
    """Everything resolution writes, but for when it did."""
    queries = {
        "members": "SELECT member_id, head_id, absorbed_by, first_seen_at FROM core.members ORDER BY 1",
        "identities": "SELECT identity_id, member_id FROM core.member_identities ORDER BY 1",
        "merges": "SELECT survivor_id, absorbed_id, evidence::text, undone_at IS NULL FROM core.member_merges ORDER BY 1, 2, 3, 4",
        "hubs": "SELECT identity_id, sharer_count FROM core.identity_hubs ORDER BY 1",
    }
    return {name: [tuple(row.values()) for row in db.execute(query)] for name, query in queries.items()}


def start(db: psycopg.Connection[Row], limit: int = LIMIT) -> None:
    wipe_members(db)
    db.execute("DELETE FROM core.identity_changes")
    db.execute("DELETE FROM core.identity_hubs")
    db.execute("SELECT setval(pg_get_serial_sequence('core.members', 'member_id'), 1, FALSE)")
    set_limit(db, limit)


def rebuild(db: psycopg.Connection[Row], at: str = NIGHT) -> members.Rebuilt:
    with db.transaction():
        return members.rebuild(db, at)  # type: ignore[arg-type]


def consistent(db: psycopg.Connection[Row]) -> None:
    """What must hold of the rows whatever happened before."""
    assert one(db, "SELECT count(*) FROM core.identity_changes") == 0
    assert one(db, "SELECT count(*) FROM core.members WHERE absorbed_by >= member_id") == 0
    wrong = (
        "SELECT count(*) FROM core.member_identities JOIN core.members USING (member_id) WHERE absorbed_by IS NOT NULL"
    )
    assert one(db, wrong) == 0, "identities belong to members in force"
    empty = "SELECT count(*) FROM core.members AS m WHERE absorbed_by IS NULL AND NOT EXISTS (SELECT FROM core.member_identities AS i WHERE i.member_id = m.member_id)"
    assert one(db, empty) == 0, "and every member in force has some"
    pointing = "SELECT count(*) FROM core.members AS m JOIN core.member_identities AS h ON h.identity_id = m.head_id WHERE coalesce(m.absorbed_by, m.member_id) <> h.member_id"
    assert one(db, pointing) == 0, "where a member's head is, the member is"
    merged = "SELECT count(*) FROM core.members AS m LEFT JOIN core.member_merges AS g ON g.absorbed_id = m.member_id AND g.undone_at IS NULL WHERE (m.absorbed_by IS NULL) <> (g.merge_id IS NULL)"
    assert one(db, merged) == 0, "who is absorbed has one merge in force, and nobody else"
    seen = "SELECT count(*) FROM core.members AS m WHERE absorbed_by IS NULL AND first_seen_at <> (SELECT min(i.first_seen_at) FROM core.member_identities AS mi JOIN core.identities AS i USING (identity_id) WHERE mi.member_id = m.member_id)"
    assert one(db, seen) == 0, "first seen when the earliest identity was"


steps = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "identity",
                "link",
                "link",
                "link",
                "link",
                "revoke",
                "restore",
                "delete",
                "earlier",
                "limit",
                "night",
                "night",
            ]
        ),
        st.integers(0, 30),
        st.integers(0, 30),
    ),
    min_size=1,
    max_size=60,
)


def do(db: psycopg.Connection[Row], what: str, x: int, y: int, ids: list[int]) -> None:
    """One thing that happens to the evidence between two nights."""
    a, b = (sorted((ids[x % len(ids)], ids[y % len(ids)]))) if ids else (0, 0)
    match what:
        case "identity":
            ids.append(add(db, KINDS[x % 3], f"v{len(ids)}", f"2026-01-{1 + y % 28:02}"))
        case "link" if a != b:
            tie(db, a, b, ("trade", "profile")[(x + y) % 2])
        case "revoke":
            db.execute(
                "UPDATE core.identity_links SET revoked_at = now() WHERE identity_a = %s AND identity_b = %s", (a, b)
            )
        case "restore":
            db.execute("UPDATE core.identity_links SET revoked_at = NULL WHERE identity_a = %s", (a,))
        case "delete":
            db.execute("DELETE FROM core.identity_links WHERE identity_a = %s AND identity_b = %s", (a, b))
        case "earlier" if a:
            db.execute("UPDATE core.identities SET first_seen_at = '2025-01-01' WHERE identity_id = %s", (a,))
        case "limit":
            set_limit(db, 1 + x % 5)


@LAW
@given(happenings=steps)
def test_nights_keep_what_the_house_promises_and_a_rebuild_finds_nothing_to_do(
    db: psycopg.Connection[Row], happenings: list[tuple[str, int, int]]
) -> None:
    start(db)
    reference, ids = Reference(), []  # type: ignore[var-annotated]
    for what, x, y in [*happenings, ("night", 0, 0)]:
        do(db, what, x, y, ids)
        if what == "night":
            reference.limit = one(db, "SELECT max_sharers FROM core.identity_rules")
            resolve(db)
            assert who_is_who(db) == reference.resolve(db)
            consistent(db)
    before = state(db), everything(db)
    assert rebuild(db, LATER).moved == 0
    assert (state(db), everything(db)) == before


@LAW
@given(happenings=steps)
def test_a_rebuild_in_the_place_of_a_night_gives_the_rows_of_the_night(
    db: psycopg.Connection[Row], happenings: list[tuple[str, int, int]]
) -> None:
    """Byte for byte, dates of the night included: both stand in a transaction that is rolled back."""
    start(db)
    ids: list[int] = [add(db, KINDS[n % 3], f"v{n}") for n in range(6)]
    for what, x, y in happenings:
        do(db, what, x, y, ids)
        if what == "night":
            found = []
            for solve in (resolve, rebuild):
                sequence = one(db, "SELECT last_value FROM core.members_member_id_seq")
                is_called = one(db, "SELECT is_called FROM core.members_member_id_seq")
                with db.transaction(force_rollback=True):
                    solve(db, NIGHT)
                    rows = {name: value for name, value in everything(db).items() if name != "core.member_merges"}
                    found.append((state(db), rows))
                db.execute("SELECT setval('core.members_member_id_seq', %s, %s)", (sequence, is_called))
            assert found[0] == found[1]
            (resolve if (x + y) % 2 else rebuild)(db, NIGHT)
            consistent(db)


@LAW
@given(data=st.data())
def test_evidence_in_any_order_over_any_nights_gives_the_same_people(db: psycopg.Connection[Row], data: Any) -> None:
    size = data.draw(st.integers(2, 25), label="identities")
    pair = st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)).filter(lambda p: p[0] != p[1])
    pairs = data.draw(st.lists(pair, max_size=40), label="links")
    found = []
    for _ in range(2):
        start(db)
        ids = [add(db, KINDS[n % 3], f"v{n}") for n in range(size)]
        for number, (a, b) in enumerate(data.draw(st.permutations(pairs), label="order")):
            tie(db, ids[a], ids[b])
            if data.draw(st.booleans(), label=f"a night after link {number}"):
                resolve(db)
        resolve(db)
        found.append({frozenset(identity - ids[0] for identity in group) for group in groups(db)})
    assert found[0] == found[1]


def test_a_hub_that_stops_being_one_ties_its_people_again_with_the_ids_they_had(db: psycopg.Connection[Row]) -> None:
    start(db, 10)
    courier = add(db, "phone", "phone:courier")
    buyers = [add(db, "taobao_open_uid", f"b{n}") for n in range(10)]
    for buyer in buyers:
        tie(db, courier, buyer)
    resolve(db)
    together = who_is_who(db)
    eleventh = add(db, "taobao_open_uid", "eleventh")
    tie(db, courier, eleventh)
    resolve(db)
    apart = who_is_who(db)
    assert len(set(apart.values())) == 12
    assert [r["sharer_count"] for r in db.execute("SELECT sharer_count FROM core.identity_hubs")] == [11]
    db.execute("UPDATE core.identity_links SET revoked_at = now() WHERE identity_b = %s", (eleventh,))
    resolve(db)
    assert {i: m for i, m in who_is_who(db).items() if i != eleventh} == together
    assert one(db, "SELECT count(*) FROM core.member_merges WHERE undone_at IS NULL") == 10
    assert one(db, "SELECT count(*) FROM core.identity_hubs") == 0
    db.execute("UPDATE core.identity_links SET revoked_at = NULL")
    resolve(db, LATER)
    assert who_is_who(db) == apart, "taken apart again, everybody is who they were"
    assert one(db, "SELECT count(*) FROM core.member_merges WHERE undone_at IS NULL") == 0
    consistent(db)


def test_another_limit_counts_everybody_again(db: psycopg.Connection[Row]) -> None:
    start(db, 10)
    phone = add(db, "phone", "phone:1")
    for n in range(5):
        tie(db, phone, add(db, "taobao_open_uid", f"b{n}"))
    resolve(db)
    assert len(groups(db)) == 1
    set_limit(db, 4)
    resolve(db)
    assert len(groups(db)) == 6
    set_limit(db, 5)
    resolve(db)
    assert len(groups(db)) == 1
    consistent(db)


def household(db: psycopg.Connection[Row]) -> tuple[int, int, int, int]:
    """Two buyers who were two members, each with an openid, and are one since they shared a phone."""
    first, second = add(db, "taobao_open_uid", "a"), add(db, "taobao_open_uid", "b")
    own = add(db, "wechat_openid", "o")
    tie(db, second, own, "profile")
    resolve(db)
    phone = add(db, "phone", "phone:1")
    tie(db, first, phone)
    tie(db, second, phone)
    resolve(db)
    return first, second, own, phone


def test_a_merge_is_taken_back_and_stays_so(db: psycopg.Connection[Row]) -> None:
    start(db)
    first, second, own, phone = household(db)
    merge = db.execute("SELECT * FROM core.member_merges").fetchone()
    assert merge is not None
    assert member_of(db, second) == merge["survivor_id"] == 1
    later = add(db, "email", "email:1")  # came after the merge and is the second buyer's only
    tie(db, later, second, "binding")
    resolve(db)
    listed = runner.invoke(app, ["merges", "--member", "2"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0, listed.output
    assert "taobao_open_uid – phone (trade, s)" in listed.output
    answer = runner.invoke(app, ["unmerge", str(merge["merge_id"]), "--reason", "two sisters"])
    assert answer.exit_code == 0, answer.output
    assert groups(db) == {frozenset({first, phone}), frozenset({second, own, later})}
    assert member_of(db, second) == merge["absorbed_id"] == 2, "who was absorbed has their id again"
    for source in ("s", "another"):  # the next trade says the same, and so does another shop
        db.execute(
            "INSERT INTO core.identity_links VALUES (%s, %s, %s, 'trade', '2026-03-01') ON CONFLICT DO NOTHING",
            (second, phone, source),
        )
    resolve(db, LATER)
    rebuild(db, LATER)
    assert member_of(db, second) == 2
    consistent(db)
    entry = db.execute("SELECT action, subject, detail FROM push.audit_log").fetchone()
    assert entry is not None
    assert (entry["action"], entry["detail"]["reason"], entry["detail"]["revoked_pairs"]) == (
        "unmerge", "two sisters", [[second, phone]],
    )  # fmt: skip
    again = runner.invoke(app, ["unmerge", str(merge["merge_id"]), "--reason", "again"])
    assert again.exit_code == 1
    assert "was taken back already, by" in again.output
    assert "there is no merge 999;" in runner.invoke(app, ["unmerge", "999", "--reason", "x"]).output


def test_new_evidence_may_tie_who_was_taken_apart(db: psycopg.Connection[Row]) -> None:
    start(db)
    first, second, *_ = household(db)
    members.unmerge(one(db, "SELECT merge_id FROM core.member_merges"), "tester", "two people")
    card = add(db, "pos_card", "c")
    tie(db, first, card)
    tie(db, second, card)
    resolve(db)
    assert member_of(db, first) == member_of(db, second) == 1
    assert one(db, "SELECT count(*) FROM core.member_merges WHERE undone_at IS NULL") == 1
    consistent(db)


def test_a_person_between_two_is_the_survivors(db: psycopg.Connection[Row]) -> None:
    start(db)
    first, second, _, _ = household(db)
    between = add(db, "email", "email:both")
    tie(db, between, first, "binding")
    tie(db, between, second, "binding")
    resolve(db)
    members.unmerge(one(db, "SELECT merge_id FROM core.member_merges"), "tester", "two people")
    assert member_of(db, between) == member_of(db, first) != member_of(db, second)


def test_of_three_one_is_taken_out(db: psycopg.Connection[Row]) -> None:
    start(db)
    buyers = [add(db, "taobao_open_uid", f"b{n}") for n in range(3)]
    resolve(db)
    phone = add(db, "phone", "phone:1")
    for buyer in buyers:
        tie(db, buyer, phone)
    resolve(db)
    merge_id = one(db, "SELECT merge_id FROM core.member_merges WHERE absorbed_id = 2")
    members.unmerge(merge_id, "tester", "not her")
    assert [member_of(db, buyer) for buyer in buyers] == [1, 2, 1]
    consistent(db)


@pytest.mark.parametrize("solve", [resolve, rebuild])
def test_members_made_by_hand_are_kept(db: psycopg.Connection[Row], solve: Any) -> None:
    start(db)
    a, b, c = (add(db, kind, kind) for kind in KINDS)
    for member in (1, 2):
        db.execute(
            "INSERT INTO core.members (member_id, first_seen_at) OVERRIDING SYSTEM VALUE VALUES (%s, '2026-01-01')",
            (member,),
        )
    db.execute("SELECT setval(pg_get_serial_sequence('core.members', 'member_id'), 2)")
    db.execute("INSERT INTO core.member_identities VALUES (%s, 1, now()), (%s, 2, now())", (a, b))
    tie(db, b, c)
    solve(db, NIGHT)
    assert who_is_who(db) == {a: 1, b: 2, c: 2}
    tie(db, a, c)
    solve(db, NIGHT)
    assert who_is_who(db) == {a: 1, b: 1, c: 1}
    assert one(db, "SELECT absorbed_by FROM core.members WHERE member_id = 2") == 1


def test_a_night_writes_and_touches_only_who_moves(db: psycopg.Connection[Row]) -> None:
    start(db)
    ids = [add(db, "taobao_open_uid", f"b{n}") for n in range(20)]
    resolve(db)
    rows = "SELECT array_agg(ctid || ' ' || identity_id) AS rows FROM core.member_identities WHERE identity_id <> %s"
    before = one(db, rows, (ids[5],))
    db.execute("DELETE FROM core.touches")
    tie(db, ids[4], ids[5])
    resolve(db, LATER)
    assert one(db, rows, (ids[5],)) == before
    touched = db.execute(
        "SELECT identity_id, member_id FROM core.touches WHERE kind = 'identity' ORDER BY 2"
    ).fetchall()
    assert [tuple(row.values()) for row in touched] == [(ids[5], 5), (ids[5], 6)]


def test_very_much_at_once_is_solved_by_the_rebuild(
    db: psycopg.Connection[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(db)
    monkeypatch.setattr(members, "MUCH", 4)
    first, second, phone = (
        add(db, "taobao_open_uid", "a"),
        add(db, "taobao_open_uid", "b"),
        add(db, "phone", "phone:1"),
    )
    mapping.resolve_members(run_id="three identities: a night")
    tie(db, first, phone)
    tie(db, second, phone)
    add(db, "email", "email:1")
    add(db, "email", "email:2")
    mapping.resolve_members(run_id="four changes: a rebuild")
    assert groups(db) >= {frozenset({first, second, phone})}
    consistent(db)
