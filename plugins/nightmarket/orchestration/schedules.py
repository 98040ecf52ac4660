"""The schedules of campaign files as DAG files need them: quickly, before any setting is known, and without stopping at a mistake.

Of two hundred files only the lines of `title` and `schedule` are read as YAML. Whether they make sense is asked by
`nightmarket check`, and again by the first task of a run; here a schedule that cannot be read is none.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

import yaml
from airflow.sdk import CronTriggerTimetable

from nightmarket.orchestration.assets import MART_NIGHT
from nightmarket.orchestration.defaults import ZONE
from nightmarket.orchestration.sources import config_folder

SCHEDULE = re.compile(r"^schedule:", re.MULTILINE)
BLOCKS = re.compile(r"^(?:title|schedule):.*\n(?:[ \t].*\n|\n)*", re.MULTILINE)
MORNING = time(8)  # as config.Schedule.at


@dataclass(frozen=True)
class Scheduled:
    """A campaign that runs by itself: its name, its titles, when."""

    campaign: str
    title: str
    timetable: Any  # what DAG(schedule=) takes


def scheduled_campaigns() -> Iterator[Scheduled]:
    """Every campaign file with a schedule, by name."""
    for path in sorted((config_folder() / "campaigns").glob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if SCHEDULE.search(text):
            data = _blocks(text + "\n")
            title = data.get("title")
            words = " ".join(map(str, title.values())) if isinstance(title, dict) else path.stem
            yield Scheduled(path.stem, words, _timetable(data.get("schedule")))


def _blocks(text: str) -> dict[str, Any]:
    try:
        data = yaml.load("".join(BLOCKS.findall(text)), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - a safe loader
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def _timetable(schedule: Any) -> Any:
    try:
        if "cron" in schedule:
            return CronTriggerTimetable(str(schedule["cron"]), timezone=ZONE)
        if "dates" in schedule:
            # not airflow.sdk's: Airflow 3.3 stores that one without its _summary and cannot read it back
            from airflow.timetables.events import EventsTimetable

            return EventsTimetable(_instants(schedule["dates"], schedule.get("at")))
        on = schedule.get("on", schedule.get(True))  # YAML 1.1 reads an unquoted `on` as true
        return [MART_NIGHT] if on == "tier_change" else None
    except (AttributeError, TypeError, ValueError):
        return None


def _instants(days: list[date], at: Any) -> Iterator[Any]:
    """YAML 1.1 reads an unquoted 10:30 as minutes; both spellings mean the same clock time."""
    import pendulum  # Airflow's own, and loaded already

    clock = MORNING if at is None else time(*divmod(at, 60)) if isinstance(at, int) else time.fromisoformat(at)
    for day in days:
        yield pendulum.instance(datetime.combine(day, clock, tzinfo=ZoneInfo(ZONE)))
