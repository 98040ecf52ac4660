"""Who is who: all identities solved at once, and nights with 1 % new evidence.

    python benchmarks/identity.py [--identities 30000] [--rounds 3]
    python benchmarks/identity.py --identities 3000000 [--first-night]

The evidence looks like that of shops and accounts: people of one to five identities, some of whom share a phone with the next
one, chains of people who do (up to a thousand long, in random order), couriers' phones that one in five hundred buyers shares.
The server is the embedded one with the settings of the local stack, durability on; every step is a process of its own with the
loading role. "first" starts without members (a first load), "again" finds everything as it should be, "night" has 1 % new identities
with their links, links between people known before, a revoked pair, and a courier more. After the nights a rebuild must find nothing.
--first-night: also the first load as a night of SQL, for comparison (slow).
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "plugins"))
FIRST_SECONDS, NIGHT_SECONDS, MEMORY_MB = 15, 3, 300  # to reach with three million identities

# Person p has 1 + (0..4) identities, in this order of kinds; hashes instead of chance, so that every run sees the same people.
GENERATE = """
CREATE TEMPORARY TABLE people AS
SELECT p, (ARRAY[1,1,1,1,1,1,1,2,2,2,2,2,2,3,3,3,3,4,4,5])[1 + abs(hashint8(p)) %% 20] AS size
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS p;
CREATE TEMPORARY TABLE fresh AS
SELECT p, n, (ARRAY['taobao_open_uid', 'phone', 'wechat_openid', 'email', 'jd_open_id'])[n] AS kind
FROM people CROSS JOIN LATERAL generate_series(1, size) AS n;
INSERT INTO core.identities (kind, value, source_id, first_seen_at)
SELECT kind, CASE WHEN kind IN ('phone', 'email') THEN kind || ':' ELSE '' END || p, 's', '2026-01-01'::timestamptz + p * interval '1 s'
FROM fresh ORDER BY p, n;
CREATE TEMPORARY TABLE known AS
SELECT f.p, f.n, f.kind, i.identity_id
FROM fresh AS f
JOIN core.identities AS i ON i.kind = f.kind AND i.value = CASE WHEN f.kind IN ('phone', 'email') THEN f.kind || ':' ELSE '' END || f.p;
CREATE INDEX ON known (p, n);
ANALYZE known;
INSERT INTO core.identity_links (identity_a, identity_b, source_id, evidence, observed_at)
SELECT DISTINCT least(a, b), greatest(a, b), 's', 'trade', '2026-01-02'::timestamptz
FROM (
    SELECT one.identity_id AS a, two.identity_id AS b      -- a person's own
    FROM known AS one JOIN known AS two ON two.p = one.p AND two.n = one.n + 1
    UNION ALL
    SELECT one.identity_id, two.identity_id                -- shares a phone with the next one who has one
    FROM known AS one JOIN known AS two ON two.p = one.p + 1 AND two.n = 2
    WHERE one.n = 1 AND abs(hashint8(one.p * 7 + 1)) %% 30 = 0
    UNION ALL
    SELECT one.identity_id, two.identity_id                -- chains: every ten-thousandth people, a thousand at most, shuffled
    FROM (SELECT identity_id, row_number() OVER (ORDER BY hashint8(p * 13 + 5)) AS r FROM known WHERE n = 1 AND p %% 100 = 7 LIMIT 1000) AS one
    JOIN (SELECT identity_id, row_number() OVER (ORDER BY hashint8(p * 13 + 5)) AS r FROM known WHERE n = 1 AND p %% 100 = 7 LIMIT 1000) AS two
        ON two.r = one.r + 1
    UNION ALL
    SELECT hub.identity_id, one.identity_id                -- couriers
    FROM (SELECT identity_id FROM known WHERE n = 2 ORDER BY p LIMIT 3) AS hub
    CROSS JOIN (SELECT identity_id FROM known WHERE n = 1 AND abs(hashint8(p * 3 + 2)) %% 500 = 0) AS one
) AS pairs
WHERE a <> b
ON CONFLICT DO NOTHING;
DROP TABLE people; DROP TABLE fresh; DROP TABLE known;
"""
# Links between people who were there before: %(count)s of them, and one that is taken back.
TIE = """
INSERT INTO core.identity_links (identity_a, identity_b, source_id, evidence, observed_at)
SELECT DISTINCT least(a, b), greatest(a, b), 's', 'binding', '2026-02-01'::timestamptz
FROM (
    SELECT 1 + abs(hashint8(n * 31 + %(seed)s::bigint)) %% %(top)s::bigint AS a, 1 + abs(hashint8(n * 37 + %(seed)s::bigint + 1)) %% %(top)s::bigint AS b
    FROM generate_series(1, %(count)s::bigint) AS n
) AS pairs
JOIN core.identities AS i ON i.identity_id = a
JOIN core.identities AS o ON o.identity_id = b
WHERE a <> b
ON CONFLICT DO NOTHING;
UPDATE core.identity_links AS l SET revoked_at = '2026-02-02'
FROM (SELECT identity_a, identity_b FROM core.identity_links WHERE identity_a > %(seed)s::bigint %% %(top)s::bigint ORDER BY identity_a LIMIT 1) AS x
WHERE l.identity_a = x.identity_a AND l.identity_b = x.identity_b;
"""


def work(what: str) -> None:
    """One measured step, in a process of its own; prints what it took as JSON."""
    from nightmarket import dates
    from nightmarket.members import FILE, rebuild
    from nightmarket.warehouse import connect, run_sql

    begun = time.monotonic()
    with connect(application_name="benchmark") as connection:
        if what == "night":
            run_sql(connection, FILE, {"as_of_at": dates.now()})
            moved = None
        else:
            moved = rebuild(connection).moved
    seconds = time.monotonic() - begun
    print(
        json.dumps(
            {"seconds": seconds, "moved": moved, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        )
    )


class House:
    """A server with evidence in it."""

    def __init__(self, folder: Path) -> None:
        from nightmarket.local.database import Server, free_port, new_password
        from nightmarket.warehouse import migrate

        self.server = Server(folder / "data", free_port(), new_password())
        self.server.start()
        self.server.create_database("identity")
        self.owner = self.server.dsn("identity")
        os.environ["NIGHTMARKET_WAREHOUSE_DSN"] = self.owner
        migrate(self.owner)
        password = new_password()
        self.server.grant_logins({"nightmarket_etl": password})
        os.environ["NIGHTMARKET_WAREHOUSE_DSN"] = self.server.dsn("identity", "nightmarket_etl", password)
        self.people = 0

    def run(self, text: str, **parameters: object) -> None:
        from nightmarket.warehouse import connect, split_statements

        with connect(self.owner) as connection:
            for statement in split_statements(text):
                connection.execute(statement, parameters)  # type: ignore[arg-type]

    def count(self, query: str) -> int:
        from nightmarket.warehouse import connect

        with connect(self.owner) as connection:
            row = connection.execute(query).fetchone()  # type: ignore[arg-type]
        assert row is not None
        return int(next(iter(row.values())) or 0)

    def add(self, people: int) -> None:
        self.run(GENERATE, first=self.people + 1, last=self.people + people)
        self.people += people

    def vacuum(self) -> None:
        from nightmarket.warehouse import connect

        with connect(self.owner, autocommit=True) as connection:
            connection.execute("VACUUM (ANALYZE)")
            connection.execute("CHECKPOINT")

    def measure(self, what: str) -> dict[str, float]:
        done = subprocess.run([sys.executable, __file__, "--work", what], check=True, capture_output=True, text=True)
        return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=3, help="nights, and rebuilds with nothing to do")
    parser.add_argument("--first-night", action="store_true")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return
    console = Console(width=110)
    folder = Path(tempfile.mkdtemp(prefix="nightmarket-identity-"))
    house = House(folder)
    try:
        begun = time.monotonic()
        house.add(int(options.identities / 2.3))
        loaded = time.monotonic() - begun
        house.vacuum()
        identities = house.count("SELECT count(*) FROM core.identities")
        links = house.count("SELECT count(*) FROM core.identity_links")
        console.print(
            f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, PostgreSQL 18 embedded on the same machine, "
            f"load {os.getloadavg()[0]:.1f}; {identities:,} identities, {links:,} links (written in {loaded:.0f} s)"
        )
        results: dict[str, list[dict[str, float]]] = {}
        if options.first_night:
            house.run("CREATE TABLE kept AS SELECT * FROM core.identity_changes")
            results["first load as a night"] = [house.measure("night")]
            house.run(
                "DELETE FROM core.member_identities; DELETE FROM core.members; DELETE FROM core.identity_changes; DELETE FROM core.touches"
            )
            house.run("INSERT INTO core.identity_changes SELECT * FROM kept; DROP TABLE kept")
            house.vacuum()
        results["full rebuild, first"] = [house.measure("full")]
        members = house.count("SELECT count(*) FROM core.members WHERE absorbed_by IS NULL")
        largest = house.count(
            "SELECT max(n) FROM (SELECT count(*) AS n FROM core.member_identities GROUP BY member_id) AS g"
        )
        hubs = house.count("SELECT count(*) FROM core.identity_hubs")
        house.vacuum()
        results["full rebuild, again"] = [house.measure("full") for _ in range(options.rounds)]
        evidence = []
        results["night, 1 % new evidence"] = []
        for number in range(options.rounds):
            house.add(max(int(house.people * 0.007), 10))
            house.run(TIE, count=max(int(links * 0.003), 5), top=identities, seed=1_000 * (number + 1))
            evidence.append(house.count("SELECT count(*) FROM core.identity_changes"))
            house.run("ANALYZE core.identities; ANALYZE core.identity_links")  # as the autovacuum of a day would
            before = house.count("SELECT count(*) FROM core.touches")
            result = house.measure("night")
            results["night, 1 % new evidence"].append(
                result | {"moved": house.count("SELECT count(*) FROM core.touches") - before}
            )
        after = house.measure("full")
        undone = house.count("SELECT count(*) FROM core.member_merges WHERE undone_at IS NOT NULL")
        merged = house.count("SELECT count(*) FROM core.member_merges")
    finally:
        house.server.stop()
        shutil.rmtree(folder, ignore_errors=True)

    first = results["full rebuild, first"][0]["seconds"]
    table = Table(
        title=f"{members:,} members, the largest of {largest:,} identities; {hubs} hubs", title_justify="left"
    )
    for name in ("step", "runs", "rows written", "seconds", "min-max", "of the first", "peak MB"):
        table.add_column(name, justify="left" if name == "step" else "right")
    for name, runs in results.items():
        seconds = [run["seconds"] for run in runs]
        table.add_row(
            name, str(len(runs)), f"{statistics.median(run['moved'] or identities for run in runs) if name != 'full rebuild, again' else 0:,.0f}",
            f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f}-{max(seconds):.2f}", f"{statistics.median(seconds) / first:.1%}",
            f"{max(run['peak_mb'] for run in runs):.0f}",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"evidence of a night: {statistics.median(evidence):,.0f} identities and links; {merged:,} merges written, {undone:,} taken back"
    )
    console.print(f"after the nights a rebuild moves {after['moved']:,} identities (must be 0)")
    console.print(f"at 3 M identities: first ≤ {FIRST_SECONDS} s, night ≤ {NIGHT_SECONDS} s, memory ≤ {MEMORY_MB} MB")
    if after["moved"]:
        raise SystemExit("nights and rebuild differ")


if __name__ == "__main__":
    main()
