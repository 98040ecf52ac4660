"""Who is who: full rebuild of the member groups, merges and how they are taken back.

A night solves in SQL what changed (core/members/members.sql). All of it at once is a union-find over the links, streamed out of
PostgreSQL: two integers per identity in memory, however many links there are. Both end in the same statements, the part of the
file behind "== write ==", and give the same groups and ids. docs/decisions/0061-members-by-heads.md
"""

from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

import psycopg
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from nightmarket import dates, warehouse
from nightmarket.warehouse import Row, connect, run_sql

FILE = "core/members/members.sql"
HUBS, FIND, WRITE = "== hubs ==", "== find ==", "== write =="  # where its parts begin
BATCH = 20_000
MUCH = 200_000  # changes: from here on a rebuild takes less time than a night
HEADS = """
    UPDATE core.members AS m SET head_id = h.head_id
    FROM (
        SELECT mi.member_id, min(mi.identity_id) AS head_id
        FROM core.members AS k
        JOIN core.member_identities AS mi ON mi.member_id = k.member_id
        WHERE k.head_id IS NULL AND NOT EXISTS (SELECT FROM core.members AS o WHERE o.head_id = mi.identity_id)
        GROUP BY mi.member_id
    ) AS h
    WHERE h.member_id = m.member_id
"""  # members made by hand have none yet


@dataclass(frozen=True)
class Rebuilt:
    """What a full rebuild found: how many identities and links there are, and how many rows were not as they should be."""

    identities: int
    links: int
    moved: int  # identities that were nobody's, or somebody else's
    born: int  # new members


def resolve(connection: psycopg.Connection[Row], as_of_at: datetime | None = None) -> None:
    """Solve what changed since the last time, in the caller's transaction: in SQL, or all at once when it is very much."""
    waiting = f"SELECT count(*), 0 FROM (SELECT FROM core.identity_changes LIMIT {MUCH}) AS c"
    if next(_rows(connection, waiting))[0] == MUCH:
        rebuild(connection, as_of_at)
    else:
        run_sql(connection, FILE, {"as_of_at": as_of_at or dates.now()})


def rebuild(connection: psycopg.Connection[Row], as_of_at: datetime | None = None) -> Rebuilt:
    """Solve all identities again from all evidence, in the caller's transaction; write only what differs.

    Mappings that bring new people wait meanwhile. Memory: twelve bytes per identity (sixteen above two billion), and sixteen more
    per identity that moves.
    """
    parameters = {"as_of_at": as_of_at or dates.now()}
    hubs, write = _part(HUBS, FIND), _part(WRITE)
    for statement in (
        "SELECT pg_advisory_xact_lock(hashtextextended('core.members', 0))",
        "LOCK TABLE core.identity_changes IN ACCESS EXCLUSIVE MODE",
        "DROP TABLE IF EXISTS pg_temp.changed, pg_temp.births, pg_temp.moves",
        "CREATE TEMPORARY TABLE changed ON COMMIT DROP AS SELECT DISTINCT c.identity_id, NULL::bigint AS other_id"
        " FROM core.identity_changes AS c JOIN core.member_identities AS mi ON mi.identity_id = c.identity_id"
        " WHERE c.other_id IS NULL",  # seen earlier than thought; all else that waits is part of everything
        "TRUNCATE core.identity_changes",
        "UPDATE core.identity_rules SET counted_max_sharers = NULL",  # count every hub again
        *hubs,
        HEADS,
        "SET LOCAL cursor_tuple_fraction = 1",
    ):
        connection.execute(statement, parameters)  # type: ignore[arg-type]

    forest = _Forest(next(_rows(connection, "SELECT coalesce(max(identity_id), 0), 0 FROM core.identities"))[0])
    root_of = forest.root
    links = 0
    for a, b in _rows(connection, "SELECT identity_a, identity_b FROM core.valid_links"):
        forest.join(a, b)
        links += 1

    members = array("q", bytes(8 * len(forest.parent)))  # by root; 0: none yet
    for head, member in _rows(connection, "SELECT head_id, member_id FROM core.members WHERE head_id IS NOT NULL"):
        root = root_of(head)
        if not members[root] or member < members[root]:
            members[root] = member

    identities = 0
    heads, moved, former = array("q"), array("q"), array("q")
    for identity, member in _rows(
        connection,
        "SELECT i.identity_id, coalesce(mi.member_id, 0) FROM core.identities AS i"
        " LEFT JOIN core.member_identities AS mi ON mi.identity_id = i.identity_id ORDER BY i.identity_id",
    ):
        identities += 1
        root = root_of(identity)
        if not members[root]:  # ascending: this is the smallest of its group
            heads.append(identity)
            members[root] = -1
        if members[root] != member:
            moved.append(identity)
            former.append(member)
    sequence = "(SELECT pg_get_serial_sequence('core.members', 'member_id')::regclass)"
    new = _rows(connection, f"SELECT nextval({sequence}), 0 FROM generate_series(1, {len(heads)})")
    born = array("q", (member for member, _ in new))
    for head, member in zip(heads, born, strict=True):
        members[root_of(head)] = member

    connection.execute(
        "CREATE TEMPORARY TABLE births (member_id bigint NOT NULL, head_id bigint NOT NULL) ON COMMIT DROP"
    )
    connection.execute(
        "CREATE TEMPORARY TABLE moves (identity_id bigint NOT NULL, former_id bigint, member_id bigint NOT NULL) ON COMMIT DROP"
    )
    _copy(connection, "births", (f"{member}\t{head}" for member, head in zip(born, heads, strict=True)))
    _copy(
        connection,
        "moves",
        (f"{who}\t{was}\t{members[root_of(who)]}" for who, was in zip(moved, former, strict=True)),
    )
    for statement in write:
        connection.execute(statement, parameters)  # type: ignore[arg-type]
    return Rebuilt(identities, links, len(moved), len(born))


class _Forest:
    """Union-find over numbers from 1; the root of a group is its smallest number."""

    def __init__(self, size: int) -> None:
        self.parent = array("i" if size < 2**31 - 1 else "q", range(size + 1))

    def root(self, node: int) -> int:
        """The smallest number of the node's group; shortens the way for who comes next."""
        parent = self.parent
        while (above := parent[node]) != node:
            parent[node] = parent[above]
            node = above
        return node

    def join(self, a: int, b: int) -> None:
        """The two are one group; the smaller root wins."""
        a, b = self.root(a), self.root(b)
        if a < b:
            self.parent[b] = a
        elif b < a:
            self.parent[a] = b


def _rows(connection: psycopg.Connection[Row], query: str) -> Iterator[tuple[int, int]]:
    """Rows of two integers, streamed in binary: half the time of COPY, line by line."""
    with connection.cursor("members", row_factory=tuple_row) as cursor:
        cursor.execute(query, binary=True)  # type: ignore[arg-type]
        while rows := cursor.fetchmany(BATCH):
            yield from rows


def _copy(connection: psycopg.Connection[Row], table: str, lines: Iterator[str]) -> None:
    """COPY lines of tab-separated numbers into a temporary table; 0 is nobody."""
    with connection.cursor().copy(f"COPY {table} FROM STDIN (NULL '0')") as copy:  # type: ignore[arg-type]
        while batch := "\n".join(islice(lines, BATCH)):
            copy.write(batch + "\n")


def _part(begin: str, end: str | None = None) -> list[str]:
    """The statements of members.sql from the one with the mark `begin` to the one before the mark `end`."""
    statements = warehouse.split_statements(warehouse.read_sql(FILE))
    places = [next(n for n, text in enumerate(statements) if mark in text) for mark in (begin, end) if mark]
    return statements[slice(*places)] if end else statements[places[0] :]


# ----------------------------------------------------------------------------------------------------------- merges
def merges(connection: psycopg.Connection[Row], member_id: int | None = None, limit: int = 50) -> list[Row]:
    """The newest merges, of one member or of all: who, when, by which evidence, taken back or not."""
    return run_sql(connection, "core/members/merges.sql", {"member_id": member_id, "row_limit": limit})


def unmerge(merge_id: int, actor: str, reason: str, as_of_at: datetime | None = None) -> Row:
    """Take a merge back: revoke the links that tie the two, solve the group again, write the audit log.

    Who was absorbed is a member of their own again, with the id they had; a revoked pair of identities is never tied again.
    Returns the merge as it stands then. Raises ValueError when there is nothing to take back.
    """
    now = as_of_at or dates.now()
    with connect(application_name="nightmarket-members") as connection:
        run_sql(connection, FILE, {"as_of_at": now})  # takes the lock; what is waiting may settle it already
        merge = _merge(connection, merge_id)
        if merge is None:
            raise ValueError(f"there is no merge {merge_id}; `nightmarket merges` lists them.")
        if merge["undone_at"]:
            raise ValueError(
                f"merge {merge_id} was taken back already, by {merge['undone_by']}: {merge['undone_reason']}."
            )
        revoked = _ties_between(connection, merge)
        for a, b in revoked:
            connection.execute(
                "UPDATE core.identity_links SET revoked_at = %s WHERE identity_a = %s AND identity_b = %s AND revoked_at IS NULL",
                (now, a, b),
            )
        run_sql(connection, FILE, {"as_of_at": now})
        merge = _merge(connection, merge_id)
        if not revoked or merge is None or not merge["undone_at"]:
            raise ValueError(
                f"merge {merge_id} cannot be taken back by its evidence: the absorbed member has no head of its own;"
                " set revoked_at on the links that are wrong (docs/decisions/0061-members-by-heads.md)."
            )
        connection.execute(
            "UPDATE core.member_merges SET undone_by = %s, undone_reason = %s WHERE merge_id = %s",
            (actor, reason, merge_id),
        )
        connection.execute(
            "INSERT INTO push.audit_log (actor, action, subject, detail) VALUES (%s, 'unmerge', %s,"
            " jsonb_build_object('reason', %s::text, 'survivor', %s::bigint, 'absorbed', %s::bigint, 'revoked_pairs', %s::jsonb))",
            (actor, f"merge {merge_id}", reason, merge["survivor_id"], merge["absorbed_id"],
             Jsonb([list(pair) for pair in revoked])),
        )  # fmt: skip
        return merge | {"undone_by": actor, "undone_reason": reason, "revoked": len(revoked)}


def _merge(connection: psycopg.Connection[Row], merge_id: int) -> Row | None:
    return connection.execute(
        "SELECT g.merge_id, g.survivor_id, g.absorbed_id, g.evidence, g.undone_at, g.undone_by, g.undone_reason,"
        " a.head_id AS absorbed_head, s.head_id AS survivor_head"
        " FROM core.member_merges AS g JOIN core.members AS a ON a.member_id = g.absorbed_id"
        " JOIN core.members AS s ON s.member_id = g.survivor_id WHERE g.merge_id = %s",
        (merge_id,),
    ).fetchone()


def _ties_between(connection: psycopg.Connection[Row], merge: Row) -> list[tuple[int, int]]:
    """The pairs of identities to part: every valid link between the absorbed member's side of the group and the other one.

    An identity that came later is on the side it is nearer to, and on the survivor's when it is as near to both.
    """
    neighbours: dict[int, set[int]] = {}
    for row in connection.execute(
        "SELECT DISTINCT v.identity_a AS a, v.identity_b AS b FROM core.member_identities AS h"
        " JOIN core.member_identities AS mi ON mi.member_id = h.member_id"
        " JOIN core.valid_links AS v ON v.identity_a = mi.identity_id WHERE h.identity_id = %s",
        (merge["absorbed_head"],),
    ):
        neighbours.setdefault(row["a"], set()).add(row["b"])
        neighbours.setdefault(row["b"], set()).add(row["a"])
    absorbed = {merge["absorbed_head"], *merge["evidence"].get("identities", ())}
    ends = {link[end] for link in merge["evidence"]["links"] or () for end in ("identity_a", "identity_b")}
    is_survivors = dict.fromkeys({merge["survivor_head"], *ends} - absorbed, True) | dict.fromkeys(absorbed, False)
    waiting = deque(
        sorted(is_survivors, key=lambda node: not is_survivors[node])
    )  # the survivor's first: near to both is theirs
    while waiting:
        node = waiting.popleft()
        for other in sorted(neighbours.get(node, ())):
            if other not in is_survivors:
                is_survivors[other] = is_survivors[node]
                waiting.append(other)
    return sorted(
        (a, b) for a, others in neighbours.items() for b in others if a < b and is_survivors[a] != is_survivors[b]
    )
