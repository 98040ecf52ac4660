"""`make demo`: two nights with some days between them, on real retail data, under a real scheduler.

Night one loads the whole history, computes tiers and KPIs and asks for reviews. In the morning a campaign is tried as
a dry run, then started for real and approved through Airflow's public API, as a person would in the UI. The clock
moves some days on, people react; the nights between are missed on purpose. Night two loads what changed since, measures
what the campaign did, reminds who has not reviewed, thanks who has, and opens a case for every bad review.
"""

import json
import time
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table

from nightmarket.console import words
from nightmarket.dates import DEFAULT_ZONE, today
from nightmarket.local.airflow_api import FINISHED, AirflowApi
from nightmarket.local.stack import Stack
from nightmarket.local.truth import compare
from nightmarket.sources import load_sources

CAMPAIGN = "winback_gold"
DAYS_BETWEEN = 5  # long enough for reviews to be asked for, reminded of, written, and thanked for
OTHER_DAGS = {"collect_receipts", "build_marts", "followup_reviews", "deliver_outbox", "push_campaign", "night_report"}
STARTED_BY_ASSETS = ("build_marts", "followup_reviews", "night_report")
# Airflow hands a parked task back only when its process has ended, a second later (stack.py, heartbeats). An answer before that makes the
# task fail and ask again (docs/runbook.md#push_campaign); a person takes longer to read anyway.
READING_SECONDS = 3


@dataclass
class Demo:
    """The story. Every method is one chapter; `timings` collects seconds per chapter and per task."""

    stack: Stack
    console: Console
    timings: dict[str, float] = field(default_factory=dict)
    task_seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    truth: dict[str, Any] = field(default_factory=dict)  # what the world held when the last night began
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self.started:6.1f} s[/dim]  {text}", highlight=False)

    def run(self) -> dict[str, Any]:
        """Both nights and the campaign; returns the summary that is also written to var/<name>/summary.json."""
        first_day = today() - timedelta(days=1)  # the data's last day becomes yesterday
        second_day = first_day + timedelta(days=DAYS_BETWEEN)
        self.stack.start()
        self.timings["start"] = time.monotonic() - self.started
        api = AirflowApi(self.stack.base_url, "admin", self.stack.admin_password, self.stack.check_alive)
        api.wait_for_dags({*self.extractions(), *OTHER_DAGS})

        self.night(api, "night one", first_day)
        self.set_clock(first_day + timedelta(days=1), 10, 0)
        self.say("10:00, the team is at work")
        self.campaign(api, first_day)
        self.deliver_due(api)
        self.say(f"{DAYS_BETWEEN} days pass: people open, click, redeem, buy, review, unsubscribe")
        self.night(api, "night two", second_day)
        self.last_morning(api, second_day)
        self.questions(second_day)
        return self.finish([first_day, second_day])

    def extractions(self) -> list[str]:
        """The extract DAGs of sources.yaml, the one with the most to read first."""
        return [f"extract_{source_id}" for source_id in load_sources()]

    def set_clock(self, day: date, hour: int, minute: int) -> None:
        self.stack.set_clock(datetime.combine(day, clock_time(hour, minute), tzinfo=DEFAULT_ZONE).timestamp())

    def night(self, api: AirflowApi, name: str, business_date: date) -> None:
        """What the schedule does at 02:00: extract every source, then everything that follows from it."""
        self.set_clock(business_date + timedelta(days=1), 2, 30)
        self.truth = self.stack.control("/truth")
        begun = time.monotonic()
        self.say(f"{name}: business date {business_date}, extracting")
        known = {dag_id: api.run_ids(dag_id) for dag_id in STARTED_BY_ASSETS}
        conf = {"business_date": business_date.isoformat()}
        runs = {dag_id: api.trigger(dag_id, conf) for dag_id in (*self.extractions(), "collect_receipts")}
        for dag_id, run_id in runs.items():
            api.wait_for_run(dag_id, run_id)
            self.note_tasks(api, name, dag_id, run_id)
            self.say(f"{name}: {dag_id} done")
        for dag_id in STARTED_BY_ASSETS:
            run_id = api.wait_for_new_run(dag_id, known[dag_id])
            api.wait_for_run(dag_id, run_id)
            self.note_tasks(api, name, dag_id, run_id)
            self.say(f"{name}: {dag_id} done")
        self.timings[name] = time.monotonic() - begun

    def campaign(self, api: AirflowApi, as_of: date) -> None:
        """A dry run first, then the real thing with a person's approval."""
        begun = time.monotonic()
        conf: dict[str, Any] = {"campaign": CAMPAIGN, "as_of": as_of.isoformat(), "dry_run": True}
        run_id = api.trigger("push_campaign", conf)
        api.wait_for_run("push_campaign", run_id)
        self.say(f"campaign {CAMPAIGN}: dry run done, nothing was sent")
        run_id = api.trigger("push_campaign", {**conf, "dry_run": False})

        def asked_or_over() -> dict[str, Any] | str | None:
            if api.run("push_campaign", run_id)["state"] in FINISHED:
                return "over"
            requests = api.open_approvals("push_campaign", run_id)
            return requests[0] if requests else None

        while (request := api.wait("the campaign", asked_or_over, 180)) != "over":
            self.say(f"approval asked: {request['subject']}")
            time.sleep(READING_SECONDS)
            api.approve("push_campaign", run_id, request["task_instance"]["task_id"], "the dry run looks right (demo)")
            self.say("approved through the public API, as a person would in the UI; sending")
        api.wait_for_run("push_campaign", run_id)
        self.note_tasks(api, "campaign", "push_campaign", run_id)
        self.timings["campaign"] = time.monotonic() - begun
        self.say(f"campaign {CAMPAIGN}: sent")

    def last_morning(self, api: AirflowApi, business_date: date) -> None:
        """The reminders and thanks of the last night go out."""
        self.set_clock(business_date + timedelta(days=1), 10, 0)
        self.deliver_due(api)

    def deliver_due(self, api: AirflowApi) -> None:
        """What the schedule does during the day: send what the night queued for the morning's send window."""
        api.wait_for_run("deliver_outbox", api.trigger("deliver_outbox", {}))
        self.say("delivered what the night had queued: requests for reviews, reminders, thanks")

    def questions(self, business_date: date) -> None:
        """What people ask in the morning: why this tier, what would other rules do, what did the campaign change, and why did
        this member not get it?"""
        from nightmarket.campaigns.why_not import explain_why_not
        from nightmarket.console.member import explain_member
        from nightmarket.retrospective import in_words as results_in_words
        from nightmarket.tiers import load_tiers
        from nightmarket.warehouse import connect
        from nightmarket.what_if import in_words, what_if

        begun = time.monotonic()
        with connect(application_name="nightmarket-demo") as connection:
            row = connection.execute(
                "SELECT t.member_id FROM mart.member_tiers AS t WHERE t.valid_to IS NULL"
                " ORDER BY t.valid_from DESC, t.kind <> 'first' DESC, t.measure_value DESC, t.member_id LIMIT 1"
            ).fetchone()
            left_out = connection.execute(
                "SELECT a.member_id, r.run_id FROM push.campaign_runs AS r JOIN push.audiences AS a USING (run_id)"
                " WHERE r.campaign = %s AND r.mode = 'live' AND a.state = 'excluded' ORDER BY r.created_at DESC, a.member_id LIMIT 1",
                (CAMPAIGN,),
            ).fetchone()
        if left_out:
            self.write("why-not.txt", "\n\n".join(explain_why_not(CAMPAIGN, left_out["member_id"])))
            self.write("results.txt", "\n\n".join(results_in_words(left_out["run_id"], lang) for lang in ("zh", "en")))
        if row:
            self.write("member.txt", explain_member(row["member_id"], business_date))
        in_force = load_tiers()
        main = in_force.programmes[0]
        easier = [
            tier.model_copy(update={"enter": tier.enter * 3 / 4, "keep": tier.keep * 3 / 4}) for tier in main.tiers
        ]
        proposed = in_force.model_copy(update={"programmes": [main.model_copy(update={"tiers": easier})]})
        answer = f"What if every tier began a quarter lower?\n{in_words(what_if(proposed, business_date))}"
        self.write("what-if.txt", answer)
        self.say("asked and answered: " + answer.splitlines()[1])
        self.timings["questions"] = time.monotonic() - begun

    def write(self, name: str, text: str) -> None:
        (self.stack.folder / name).write_text(text + "\n", encoding="utf-8")

    def note_tasks(self, api: AirflowApi, chapter: str, dag_id: str, run_id: str) -> None:
        self.task_seconds.setdefault(chapter, {}).update(
            {
                f"{dag_id}.{task['task_id']}": round(task["duration"], 2)
                for task in api.tasks(dag_id, run_id)
                if task.get("duration") is not None
            }
        )

    def finish(self, business_dates: list[date]) -> dict[str, Any]:
        """Write summary.json and night-report.html, print the table."""
        from nightmarket.console.queries import reader
        from nightmarket.report import summary, write_night_report

        result = summary(business_dates)
        counters = self.stack.control("/counters")
        # whom it treated and to whom it delivered are people, and stay in the sandbox
        experiment = {k: v for k, v in self.truth["experiment"].items() if not isinstance(v, list)}
        messages = {
            k: v for k, v in counters["messages"].items() if k in ("total", "by_channel", "max_per_receiver_and_key")
        }
        result["sandbox_truth"] = self.truth | {"experiment": experiment}
        result["sandbox_counters"] = {
            "requests": counters["requests"],
            "refused": counters["refused"],
            "messages": messages,
        }
        with reader() as read:  # as of the moment the last night began: life went on while it ran
            totals = read.rows("source_totals", as_of_at=self.truth["now"])
        bill = compare(load_sources().values(), totals, self.truth)
        result["bill"] = [{k: float(v) if isinstance(v, Decimal) else v for k, v in row.items()} for row in bill]
        self.timings["total"] = time.monotonic() - self.started
        result["seconds"] = {name: round(value, 1) for name, value in self.timings.items()}
        result["task_seconds"] = self.task_seconds
        summary_path = self.stack.folder / "summary.json"
        summary_path.write_text(json.dumps(result, indent=1, ensure_ascii=False, default=str))
        report_path = write_night_report(self.stack.folder / "night-report.html", business_dates)
        self.print_bill(bill)
        self.print_table(result)
        self.print_laws(result["laws"], result)
        self.say(f"written: {summary_path.relative_to(self.stack.folder.parents[1])}, "
                 f"{report_path.relative_to(self.stack.folder.parents[1])}, member.txt, what-if.txt, why-not.txt, results.txt beside them")  # fmt: skip
        return result

    def print_bill(self, bill: list[dict[str, Any]]) -> None:
        """Per source: what arrived, what was rejected, what the world says should have arrived."""
        table = Table(title="来源 Sources: what arrived, and what the world says should have", title_justify="left")
        table.add_column("source", no_wrap=True)
        table.add_column("figure", no_wrap=True)
        for name in ("in core", "in the world", "difference"):
            table.add_column(name, justify="right", no_wrap=True)
        last = ""
        for row in bill:
            if row["source"] != last:
                last = row["source"]
                table.add_section()
                table.add_row(last, "records read", f"{row['arrived']:,}")
                table.add_row("", "waiting as rejects", f"{row['rejected']:,}")
            core, world, difference = (f"{row[name].normalize():,f}" for name in ("core", "world", "difference"))
            table.add_row("", row["figure"], core, world, difference, style="red" if row["difference"] else None)
        self.console.print(table)

    def print_laws(self, laws: list[dict[str, Any]], result: dict[str, Any]) -> None:
        """The laws that were checked after every run, with their counts, and what the receivers counted."""
        table = Table(title="定律 Laws, checked after every run", title_justify="left")
        table.add_column("law", no_wrap=True)
        table.add_column("kept in", no_wrap=True)
        table.add_column("seen, in the largest run")
        for law in laws:
            broken = law["kept_count"] < law["run_count"]
            name = f"{words.say(words.LAWS, law['law']).zh}\n{law['law']}"
            runs = f"{law['kept_count']:,} of {law['run_count']:,}"
            table.add_row(name, runs, law["observed"], style="red" if broken else None, end_section=True)
        arrived = result["sandbox_counters"]["messages"]
        table.add_row(
            "到达方的账\nat the receivers", "", f"{arrived['total']:,} messages arrived in the sandbox,"
            f" {arrived['max_per_receiver_and_key']:,} at most of one message at one receiver",
        )  # fmt: skip
        self.console.print(table)

    def print_table(self, result: dict[str, Any]) -> None:
        table = Table(title="夜市 Nightmarket: what happened", title_justify="left")
        table.add_column("figure")
        table.add_column("value", justify="right")
        for label, value in result["headline"].items():
            table.add_row(label, str(value))
        for name, seconds in result["seconds"].items():
            table.add_row(f"seconds: {name}", f"{seconds:,.1f}")
        self.console.print(table)
