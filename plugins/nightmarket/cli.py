"""nightmarket: questions and repairs from a shell, without the scheduler.

Against a local stack the environment is read from var/<stack>/env.json; on a server it is already set.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from nightmarket import __version__, dates
from nightmarket.settings import ROOT, ConfigError, get_settings

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
explain = typer.Typer(no_args_is_help=True, help="Why a figure, a tier or a stage is what it is, in words.")
app.add_typer(explain, name="explain")
tier = typer.Typer(
    no_args_is_help=True, help="Tiers given, frozen or taken back by hand; the next night tells the history with it."
)
app.add_typer(tier, name="tier")
run = typer.Typer(
    no_args_is_help=True, help="A campaign run: pause it, resume, cancel, extend it, run it again, look at it."
)
app.add_typer(run, name="run")
coupon = typer.Typer(no_args_is_help=True, help="Coupons: codes, lists, what a stock has left, and a shop's desk.")
app.add_typer(coupon, name="coupons")
case = typer.Typer(
    no_args_is_help=True, help="Service cases of bad reviews: who looks after one, and that it is settled."
)
app.add_typer(case, name="case")
Day = Annotated[str | None, typer.Option(help="business date YYYY-MM-DD; default yesterday in Asia/Shanghai")]


@contextmanager
def _sentences() -> Iterator[None]:
    """Mistakes of configuration and input end in one sentence and exit code 1, not in a traceback."""
    try:
        yield
    except (ConfigError, ValueError) as error:
        typer.secho(f"nightmarket: {error}", fg="red", err=True)
        raise typer.Exit(1) from None


@app.callback()
def _environment(stack: Annotated[str, typer.Option(help="the local stack whose settings to use")] = "local") -> None:
    file = ROOT / "var" / stack / "env.json"
    if "NIGHTMARKET_WAREHOUSE_DSN" not in os.environ and file.exists():
        os.environ.update(json.loads(file.read_text()))


@app.command()
def version() -> None:
    """The version."""
    typer.echo(__version__)


@app.command()
def check(
    lengths: Annotated[bool, typer.Option(help="also print how long every text is on every channel")] = False,
) -> None:
    """Read every configuration file, template and segment; print what is wrong, one sentence each."""
    from nightmarket.campaigns.config import check_all
    from nightmarket.categories import load_categories
    from nightmarket.marts import load_kpis, load_tiers
    from nightmarket.sources import load_sources

    os.environ.setdefault("NIGHTMARKET_WAREHOUSE_DSN", "postgresql://")  # reading files needs no database
    problems = []
    for load in (load_sources, load_categories, load_tiers, load_kpis):
        try:
            load()
        except ConfigError as error:
            problems.append(str(error))
    problems += check_all()
    for problem in problems:
        typer.secho(problem, fg="red", err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo("configuration: no mistakes found")
    if lengths:
        from nightmarket.campaigns.preview import all_lengths

        for shown in all_lengths():
            typer.echo(shown.heading)


@app.command()
def check_source(
    source_ids: Annotated[list[str] | None, typer.Argument(help="default: all of sources.yaml")] = None,
) -> None:
    """A few cheap calls per source: does the key work, for which shop, what may it not read, how far is the clock off?"""
    from nightmarket.landing import check_source as run
    from nightmarket.platforms.base import PlatformError
    from nightmarket.sources import UnknownSource, load_sources

    failed = False
    with _sentences():
        for source_id in source_ids or load_sources():
            try:
                typer.echo(run(source_id))
            except (PlatformError, ConfigError, UnknownSource) as error:
                typer.secho(f"{source_id}: {error}", fg="red", err=True)
                failed = True
    if failed:
        raise typer.Exit(1)


@app.command()
def pools() -> None:
    """The Airflow pools of our accounts as JSON: `nightmarket pools | airflow pools import /dev/stdin`."""
    from nightmarket.sources import account_pools

    with _sentences():
        typer.echo(json.dumps(account_pools(), indent=1))


@app.command()
def gaps(source_id: Annotated[str | None, typer.Argument(help="one source; default all")] = None) -> None:
    """Name the stretches of a source that were never read; exit code 1 when there are any."""
    from nightmarket.landing import gaps as find

    with _sentences():
        found = find(source_id)
    for gap in found:
        typer.echo(gap.sentence())
    if found:
        raise typer.Exit(1)
    typer.echo("no gaps: every stream was read from the beginning of its history to its watermark")


@app.command()
def migrate() -> None:
    """Bring the warehouse's schemas to the newest version."""
    from nightmarket.warehouse import migrate as run

    with _sentences():
        run()
        typer.echo("schemas are up to date")


@app.command()
def report(
    day: Day = None, path: Annotated[Path | None, typer.Option(help="where to write; default var/.../reports")] = None
) -> None:
    """Write the night report of a business date as one HTML file."""
    from nightmarket.report import write_night_report

    with _sentences():
        business_date: date = dates.business_date(day)
        target = path or get_settings().var / "reports" / f"night-{business_date}.html"
        target.parent.mkdir(parents=True, exist_ok=True)
        typer.echo(write_night_report(target, [business_date]))


@app.command()
def figure(
    name: Annotated[str, typer.Argument(help="a file of include/sql/console, without .sql")],
    parameters: Annotated[list[str] | None, typer.Argument(help="its parameters, as name=value")] = None,
) -> None:
    """Compute a figure of the night report or the console again: run its SQL file, print its rows."""
    import psycopg
    from rich.console import Console
    from rich.table import Table

    from nightmarket.console.queries import FILE_NAME, reader

    with _sentences():
        pairs = [text.partition("=") for text in parameters or []]
        if not FILE_NAME.fullmatch(name) or not all(equals for _, equals, _ in pairs):
            raise ValueError(
                "give a file name without .sql, then name=value pairs: nightmarket figure tiers business_date=2026-03-13"
            )
        try:
            with reader() as read:
                rows = read.rows(name, **{key: value for key, _, value in pairs})
        except psycopg.Error as error:
            first = str(error).splitlines()[0]
            raise ValueError(f"{first} (the header of include/sql/console/{name}.sql says what it takes)") from None
        table = Table(*(rows[0] if rows else ("no rows",)))
        for row in rows:
            table.add_row(*("" if value is None else str(value) for value in row.values()))
        Console().print(table)


@app.command()
def what_if(
    tiers: Annotated[Path, typer.Option(help="the proposed rules: a file like include/config/tiers.yaml")],
    day: Day = None,
    out: Annotated[Path | None, typer.Option(help="write every member who would stand differently to this CSV")] = None,
) -> None:
    """Tell the whole history by other tier rules: who would rise and fall, since when, what it would cost. Changes nothing."""
    from nightmarket.tiers import load_tiers
    from nightmarket.what_if import in_words
    from nightmarket.what_if import what_if as run

    with _sentences():
        result = run(load_tiers(tiers), dates.business_date(day))
        typer.echo(in_words(result))
        if out:
            typer.echo(f"{len(result.differing):,} members: {result.write_csv(out)}")


@app.command()
def marts(
    day: Day = None,
    since: Annotated[
        str | None, typer.Option("--from", help="first business date of a stretch; default: --day alone")
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="empty every mart before; facts stay")] = False,
    workers: Annotated[int, typer.Option(min=1, max=8, help="tables at the same time")] = 2,
) -> None:
    """Compute the marts of a business date or of a stretch, as the nights would have; --rebuild from empty tables."""
    from nightmarket.rebuild import backfill

    with _sentences():
        last = dates.business_date(day)
        first = dates.business_date(since) if since else last
        begun = backfill(
            first, last, from_empty=rebuild, workers=workers, progress=lambda d, s: typer.echo(f"{d}: {s:,.1f} s")
        )
        typer.echo(f"{len(begun)} night{'s' if len(begun) > 1 else ''} in {sum(begun.values()):,.1f} s")


@app.command()
def gate(
    name: Annotated[str | None, typer.Argument(help="core, mart or push; default all")] = None,
    day: Day = None,
    full: Annotated[
        bool, typer.Option("--full", help="judge everything, not only what a night can have moved")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="print the checks that passed, too")] = False,
) -> None:
    """Run the checks of a quality gate, keep the results, print what did not pass; exit code 1 when a gate is red."""
    from rich.console import Console
    from rich.table import Table

    from nightmarket.quality import GATES, judge

    red = False
    with _sentences():
        for gate_name in [name] if name else GATES:
            report = judge(gate_name, dates.business_date(day), f"cli/{_actor()}", full=full)
            shown = report.results if everything else (*report.failed, *report.warned)
            table = Table("state", "table", "check", "seen")
            for result in shown:
                table.add_row(result.state, result.table, result.check, result.observed)
            if shown:
                Console().print(table)
            typer.secho(str(report), fg="red" if report.failed else None)
            red = red or bool(report.failed)
    if red:
        raise typer.Exit(1)


@app.command()
def results(run_id: str, language: Annotated[str, typer.Option("--language", help="zh or en")] = "en") -> None:
    """What a campaign run changed: verdict, funnel, variants, targets, earlier runs, what reached the hold-out."""
    from nightmarket.retrospective import in_words

    with _sentences():
        typer.echo(in_words(run_id, language))


@app.command()
def learnings(run_id: str, learning: Annotated[str, typer.Argument(help="a sentence that names no person")]) -> None:
    """Write down what was learned from a campaign run; its retrospective says it from then on."""
    from nightmarket.retrospective import learn

    with _sentences():
        page = learn(run_id, learning, _actor())
        typer.echo(f"written down; {page or 'the retrospective is made when the attribution window is closed'}")


@app.command()
def resume(channel: str, account: str) -> None:
    """Let a paused channel send again, e.g. `nightmarket resume wechat_mass wechat_official`, once its cause is gone."""
    from nightmarket.campaigns import outbox

    with _sentences():
        lifted = outbox.resume(channel, account, os.environ.get("USER", "cli"))
        typer.echo(f"{channel}:{account} {'may send again' if lifted else 'was not paused'}")


@app.command()
def restored(reason: Annotated[str, typer.Option(help="which backup, and why; for the audit log")]) -> None:
    """After the database was restored from a backup: tell it of the calls made since, so that nothing goes out twice."""
    from nightmarket.campaigns import logbook

    with _sentences():
        counts = logbook.settle(os.environ.get("USER", "cli"), reason)
        typer.echo(
            f"{counts['calls']:,} calls were made after the backup: {counts['unknown']:,} messages are unknown now, {counts['repeated']:,} are"
            f" called again under the same key, {counts['remembered']:,} are not in the database and are unknown when they are made again"
        )


@app.command()
def preview(
    campaign: Annotated[str, typer.Argument(help="a campaign, or a journey such as followup_reviews")],
    member: Annotated[int, typer.Argument(help="member id")],
    language: Annotated[str | None, typer.Option(help="zh or en; default the member's own")] = None,
    channel: Annotated[str | None, typer.Option(help="default: every channel it uses")] = None,
    day: Day = None,
) -> None:
    """A campaign's messages as one member would see them: name masked, length, and for how many SMS each is billed."""
    from nightmarket.campaigns.preview import preview_member

    with _sentences():
        for shown in preview_member(
            campaign, member, language=language, channel=channel, as_of=dates.business_date(day)
        ):
            typer.secho(shown.heading, fg="red" if shown.problem else None, bold=True)
            typer.echo(shown.text + "\n")


@app.command()
def cases(
    only_open: Annotated[bool, typer.Option("--open", help="only those that nobody has answered yet")] = False,
) -> None:
    """Bad reviews that somebody has to answer: what is late first, then by deadline."""
    from rich.console import Console
    from rich.table import Table

    from nightmarket.console.app import CASES_SHOWN
    from nightmarket.console.queries import reader

    with _sentences(), reader() as read:
        zone = get_settings().zone
        rows = read.rows("cases", only_open=only_open, limit_rows=CASES_SHOWN)
    table = Table("case", "shop", "order", "rating", "state", "by", "assigned", "answered or closed")
    for row in rows:
        settled = row["answered_at"] or row["closed_at"]
        table.add_row(
            str(row["case_id"]), row["source_id"], row["order_id"] or f"(review {row['review_id']})", str(row["rating"] or ""), row["state"],
            f"{row['deadline_at'].astimezone(zone):%Y-%m-%d %H:%M}", row["assigned_to"] or "",
            f"{settled.astimezone(zone):%Y-%m-%d %H:%M}" if settled else "",
        )  # fmt: skip
    Console().print(table if rows else "no cases")


@case.command("close")
def close_a_case(
    case_id: int, reason: Annotated[str, typer.Option(help="how it was settled, for the audit log")]
) -> None:
    """Settle a case without a reply in the shop, e.g. by a call."""
    from nightmarket.campaigns.cases import close_case

    with _sentences():
        close_case(case_id, by=_actor(), reason=reason)
        typer.echo(f"case {case_id} is closed")


@case.command("assign")
def assign_a_case(case_id: int, to: Annotated[str, typer.Argument(help="who looks after it")]) -> None:
    """Say who looks after a case; the alert about its deadline names them."""
    from nightmarket.campaigns.cases import assign_case

    with _sentences():
        assign_case(case_id, to=to, by=_actor())
        typer.echo(f"case {case_id}: {to}")


@app.command()
def rebuild_members() -> None:
    """Solve who is who again from all evidence, writing only what differs: after a first load, or when nights are doubted."""
    from nightmarket.members import rebuild
    from nightmarket.warehouse import connect

    with _sentences(), connect(application_name="nightmarket-members") as connection:
        found = rebuild(connection)
        typer.echo(
            f"{found.identities:,} identities and {found.links:,} links solved; "
            f"{found.moved:,} identities moved, {found.born:,} members are new"
        )


@app.command()
def merges(
    member: Annotated[int | None, typer.Option(help="of this member only, survivor or absorbed")] = None,
    limit: Annotated[int, typer.Option(help="the newest so many")] = 50,
) -> None:
    """List members that turned out to be one person, with the evidence: what `nightmarket unmerge` takes."""
    from rich.console import Console
    from rich.table import Table

    from nightmarket.members import merges as find
    from nightmarket.warehouse import connect

    with _sentences(), connect(application_name="nightmarket-members") as connection:
        rows = find(connection, member, limit)
    table = Table(*(rows[0] if rows else ("no merges",)))
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console().print(table)


@app.command()
def unmerge(merge_id: int, reason: Annotated[str, typer.Option(help="why, for the audit log")]) -> None:
    """Take a merge of two members back: the evidence that ties them is revoked, for good, and each has their id again."""
    from nightmarket.members import unmerge as run

    with _sentences():
        merge = run(merge_id, os.environ.get("USER", "cli"), reason)
        typer.echo(
            f"{merge['absorbed_id']} is a member of its own again, apart from {merge['survivor_id']}; "
            f"{merge['revoked']} pairs of identities tie them no more"
        )


@app.command()
def suppress(
    file: Annotated[Path, typer.Option(help="a CSV list: phone, email or openid; channel, reason and date if wanted")],
    source: Annotated[str, typer.Option(help="who gave the list")] = "do_not_contact",
) -> None:
    """Take a do-not-contact list into the suppression log. Clear values become tokens; bad lines are told and kept apart."""
    from nightmarket.suppressions import take_list
    from nightmarket.warehouse import connect

    with _sentences(), connect(application_name="nightmarket-suppressions") as connection:
        taken = take_list(connection, file, source_id=source, run_id=f"cli/{os.environ.get('USER', 'cli')}")
    for sentence in taken.mistakes:
        typer.secho(sentence, fg="red", err=True)
    typer.echo(
        f"{taken.lines:,} lines: {taken.added:,} suppressions are new, {taken.known:,} stood already, "
        f"{len(taken.mistakes):,} lines could not be used"
    )
    if taken.mistakes:
        raise typer.Exit(1)


@app.command()
def lift(
    channel: str,
    address: Annotated[str, typer.Argument(help="an openid, or a token (nightmarket token)")],
    reason: Annotated[str, typer.Argument(help="the reason it stands for, as push.suppressions shows it")],
    why: Annotated[str, typer.Option(help="why it ends, for the audit log")],
) -> None:
    """End a suppression of one address for one reason; other reasons stand, and consent is asked beside it."""
    from nightmarket.suppressions import lift as run
    from nightmarket.warehouse import connect

    with _sentences(), connect(application_name="nightmarket-suppressions") as connection:
        count = run(connection, channel, address, reason, actor=os.environ.get("USER", "cli"), why=why)
        if not count:
            raise ValueError(f"no suppression of this address on {channel} stands for {reason!r}")
        typer.echo("lifted")


@app.command()
def token(kind: Annotated[str, typer.Argument(help="phone, email, name, address or nick")]) -> None:
    """The token of a clear value, to look a person up or erase them. The value is asked for, so it stays out of the history."""
    from nightmarket.privacy import Tokenizer

    with _sentences():
        typer.echo(Tokenizer.from_settings().token(kind, typer.prompt("value", hide_input=True)))


@app.command()
def erase(token: list[str], reason: Annotated[str, typer.Option(help="why, for the audit log")]) -> None:
    """Delete a person's clear values from the vault and the stored pushes for good. Tokens look like phone:XXXX."""
    from nightmarket.privacy import erase as run
    from nightmarket.warehouse import connect_vault

    with _sentences(), connect_vault() as connection:
        erased = run(connection, token, actor=os.environ.get("USER", "cli"), reason=reason)
        typer.echo(
            f"{erased.secrets} of {len(token)} tokens deleted from the vault, and {erased.pushes} stored pushes that named them;"
            " the audit log has the entry"
        )
        if erased.unread:
            typer.echo(f"{erased.unread} pushes about them are not read yet: erase again after the next night")


@explain.command("member")
def explain_a_member(
    member_id: Annotated[int, typer.Argument(help="as in core.members; of a merged one, the member it became")],
    as_of: Annotated[str | None, typer.Option(help="end of which business date; default yesterday")] = None,
) -> None:
    """Why a member has this tier and stage, with the orders behind it."""
    from nightmarket.console.member import explain_member

    with _sentences():
        typer.echo(explain_member(member_id, dates.business_date(as_of)))


@explain.command("why-not")
def explain_why_not(
    campaign: str,
    member_id: int,
    as_of: Annotated[
        str | None, typer.Option(help="what a run for this date would say; default: the runs there were")
    ] = None,
) -> None:
    """Why a member got a campaign or did not: the gate and the facts, run by run; before any run, as a dry run would say."""
    from nightmarket.campaigns.why_not import explain_why_not as why

    with _sentences():
        zh, en = why(campaign, member_id, dates.business_date(as_of) if as_of else None)
        typer.echo(f"{zh}\n\n{en}")


@explain.command("kpi")
def explain_a_kpi(
    name: Annotated[str, typer.Argument(help="as in include/config/kpis.yaml, e.g. paid_orders")],
    date: Annotated[str | None, typer.Option("--date", help="YYYY-MM-DD; default yesterday in Asia/Shanghai")] = None,
    source: Annotated[str, typer.Option(help="one source, or channel of messages; default all together")] = "",
    grain: Annotated[str, typer.Option(help="day, week or month that holds the date")] = "day",
) -> None:
    """A KPI's figure: its parts, target and comparison, the SQL that makes it, and the same again from core."""
    from nightmarket.explain_kpi import explain_kpi

    with _sentences():
        typer.echo(explain_kpi(name, dates.business_date(date), source, grain))


Reason = Annotated[str, typer.Option(help="why, for the history and the audit log")]
Try = Annotated[bool, typer.Option("--dry-run", help="say what would happen, change nothing")]


def _operate(run_id: str, action: str, reason: str, dry_run: bool, **options: Any) -> None:
    from nightmarket.campaigns.operate import operate

    with _sentences():
        done = operate(run_id, action, _actor(), reason, dry_run=dry_run, **options)
        typer.echo(f"{done.zh}\n{done.en}")
        if done.start:
            typer.echo(f"airflow dags trigger push_campaign --conf '{json.dumps(done.start)}'")


@run.command("pause")
def run_pause(run_id: str, reason: Reason, dry_run: Try = False) -> None:
    """Begin no further call of a run; what is queued waits, and may expire."""
    _operate(run_id, "pause", reason, dry_run)


@run.command("resume")
def run_resume(run_id: str, reason: Reason, dry_run: Try = False) -> None:
    """Let a paused run go on."""
    _operate(run_id, "resume", reason, dry_run)


@run.command("cancel")
def run_cancel(run_id: str, reason: Reason, dry_run: Try = False) -> None:
    """Stop a run for good: what is still queued is never sent, its reserved coupons are free again."""
    _operate(run_id, "cancel", reason, dry_run)


@run.command("extend")
def run_extend(
    run_id: str,
    reason: Reason,
    hours: Annotated[int | None, typer.Option(help="the new expires_after_hours")] = None,
    opens: Annotated[
        str | None, typer.Option(help="HH:MM; with --closes, another send window: asks for approval")
    ] = None,
    closes: Annotated[str | None, typer.Option(help="HH:MM")] = None,
    dry_run: Try = False,
) -> None:
    """Give a run more time. For another send window use the DAG operate_run, which asks for the approval it needs."""
    from nightmarket.campaigns.config import SendWindow

    with _sentences():
        if (opens is None) != (closes is None):
            raise ValueError("a send window needs both ends: --opens and --closes")
    window = SendWindow.model_validate({"opens": opens, "closes": closes}) if opens else None
    _operate(run_id, "extend", reason, dry_run or window is not None, hours=hours, window=window)
    if window and not dry_run:
        typer.echo("nothing was changed: start the DAG operate_run, it asks for the approval another window needs")


@run.command("rerun")
def run_again(run_id: str, reason: Reason, dry_run: Try = False) -> None:
    """Check that a refused or cancelled run's campaign can run again for its day, and say how to start it."""
    _operate(run_id, "rerun", reason, dry_run)


@run.command("show")
def run_show(run_id: str) -> None:
    """How far a run is, and everything that was done to it."""
    from rich.console import Console
    from rich.table import Table

    from nightmarket.campaigns.operate import show

    with _sentences():
        progress, log = show(run_id)
    for name, value in progress.items():
        if value is not None:
            typer.echo(f"{name}: {value}")
    table = Table("when", "who", "what", "detail")
    for row in log:
        table.add_row(
            f"{row['occurred_at']:%Y-%m-%d %H:%M:%S}",
            row["actor"],
            row["action"],
            json.dumps(row["detail"], ensure_ascii=False),
        )
    Console().print(table)


Until = Annotated[
    str | None, typer.Option(help="first day on which it no longer holds, YYYY-MM-DD; default: until it is revoked")
]
Programme = Annotated[str | None, typer.Option(help="default: the first of tiers.yaml")]


def _actor() -> str:
    return os.environ.get("USER", "cli")


def _date(text: str | None) -> date | None:
    return date.fromisoformat(text) if text else None


@tier.command("grant")
def tier_grant(member_id: int, name: str, reason: Reason, until: Until = None, programme: Programme = None) -> None:
    """Give a member at least this tier from today on."""
    from nightmarket.grants import decide_tier

    with _sentences():
        number = decide_tier(
            member_id, "grant", tier=name, programme=programme, until=_date(until), reason=reason, actor=_actor()
        )
        typer.echo(
            f"grant {number}: member {member_id} has at least {name} {f'until {until}' if until else 'until it is revoked'}"
        )


@tier.command("freeze")
def tier_freeze(member_id: int, reason: Reason, until: Until = None, programme: Programme = None) -> None:
    """Let a member's tier stand still from today on: no rise, no review, no fall."""
    from nightmarket.grants import decide_tier

    with _sentences():
        number = decide_tier(
            member_id, "freeze", programme=programme, until=_date(until), reason=reason, actor=_actor()
        )
        typer.echo(
            f"freeze {number}: the tier of member {member_id} stands still {f'until {until}' if until else 'until it is revoked'}"
        )


@tier.command("revoke")
def tier_revoke(grant_id: int, reason: Reason) -> None:
    """End a grant or a freeze today."""
    from nightmarket.grants import revoke_tier

    with _sentences():
        revoke_tier(grant_id, reason=reason, actor=_actor())
        typer.echo(f"grant {grant_id} ends today; what it did until today stays in the history")


@app.command()
def points(
    member_id: int,
    number: Annotated[
        int, typer.Argument(help="points to give; with --redeem, to spend; put -- before a negative number")
    ],
    reason: Reason,
    use_id: Annotated[str, typer.Option(help="your own key of this use: the same key again changes nothing")],
    redeem: Annotated[bool, typer.Option("--redeem", help="spend them instead of giving or taking them")] = False,
) -> None:
    """Give, take or spend a member's points by hand. Prints the balance that is left."""
    from nightmarket.grants import use_points

    with _sentences():
        left = use_points(
            member_id, number, kind="redeem" if redeem else "adjust", use_id=use_id, reason=reason, actor=_actor()
        )
        typer.echo(f"member {member_id}: {left:,} points")


@coupon.command("make")
def coupons_make(
    stock: str, count: Annotated[int, typer.Argument(help="codes to make now, before anybody needs them")]
) -> None:
    """Make codes of an own or points stock in advance. They are shown to nobody."""
    from nightmarket.campaigns import codes

    with _sentences():
        total = codes.make(stock, count, by=_actor())
        typer.echo(f"{stock}: {count:,} codes made, {total:,} in all")


@coupon.command("import")
def coupons_import(stock: str, file: Path) -> None:
    """Read a list of codes (one a line, or the first column of a CSV file) into a code_list stock; again adds nothing."""
    from nightmarket.campaigns import codes

    with _sentences():
        read = codes.import_codes(stock, file, by=_actor())
        typer.echo(
            f"{stock}: {read.added:,} codes are new, {read.known:,} were known, {len(read.refused):,} lines refused"
        )
        for line, reason in list(read.refused.items())[:20]:
            typer.secho(f"{file.name}:{line}: {reason}", fg="yellow")
        if len(read.refused) > 20:
            typer.echo(f"... and {len(read.refused) - 20:,} more, all of them in push.coupon_rejects")


@coupon.command("stock")
def coupons_stock(stock: str) -> None:
    """What a stock has made, given and got back, and what can still be promised."""
    from rich.console import Console
    from rich.table import Table

    from nightmarket.campaigns import codes

    with _sentences():
        row = codes.stock_balance(stock)
        table = Table("of coupons", "pieces", title=f"{stock} {row['name']} ({row['issuer']})")
        for words, name in codes.BALANCE.items():
            if row["has_codes"] or name not in codes.ONLY_CODES:
                table.add_row(words, f"{row[name]:,}")
        Console().print(table)
        typer.echo(f"face value promised: {row['promised_amount']:,} of {row['budget_amount'] or 'no limit'} yuan")


@coupon.command("check")
def coupons_check(code: str) -> None:
    """What a code is worth and whether it can be used now: for a shop's desk."""
    from nightmarket.campaigns import codes

    with _sentences():
        typer.echo(codes.in_words(codes.look_up(code)))


@coupon.command("redeem")
def coupons_redeem(
    code: str,
    order: Annotated[str | None, typer.Option(help="number of the order it is used on")] = None,
    source: Annotated[str | None, typer.Option(help="whose order: a source of sources.yaml, e.g. pos_stores")] = None,
) -> None:
    """Use a code, once; a second time says when and where it was used, with exit code 1."""
    from nightmarket.campaigns import codes

    with _sentences():
        typer.echo(codes.in_words(codes.redeem(code, order_id=order, source_id=source, by=_actor())))


@coupon.command("void")
def coupons_void(code: str, reason: Reason) -> None:
    """Take a code out, for one that got into wrong hands: nobody can use it any more."""
    from nightmarket.campaigns import codes

    with _sentences():
        typer.echo(f"code {codes.void(code, by=_actor(), reason=reason)} is void")


@coupon.command("grant")
def coupons_grant(
    stock: str,
    member_id: int,
    key: Annotated[str, typer.Option(help="your own key of this coupon: the same key again gives nothing more")],
    reason: Reason,
) -> None:
    """Give one member one coupon outside of any run; of a points stock, the member's points pay for it."""
    from nightmarket.campaigns import coupons

    with _sentences():
        state = coupons.grant(stock, member_id, key, by=_actor(), reason=reason)
        typer.echo(f"coupon {key} of {stock} for member {member_id} is {state}")


@coupon.command("resolve")
def coupons_resolve(
    key: str,
    reason: Reason,
    given: Annotated[
        str | None, typer.Option(help="the issuer's id of the coupon, when it was given; else it was not")
    ] = None,
) -> None:
    """Decide about a coupon in doubt, after looking it up at an issuer that cannot be asked."""
    from nightmarket.campaigns import coupons

    with _sentences():
        typer.echo(f"coupon {key} is {coupons.resolve(key, given, by=_actor(), reason=reason)}")


if __name__ == "__main__":
    app()
