"""No message goes out on a red gate: asked before an audience is built and once more before anything is reserved or sent."""

from datetime import date

from nightmarket.warehouse import connect, run_sql


class GateRed(Exception):
    """The gates of a business date did not pass, or never ran, as one sentence."""


def require_green(day: date) -> str:
    """A sentence when the newest result of every check of business date `day` is good. Raises GateRed."""
    with connect(application_name="nightmarket-gate") as connection:
        state = run_sql(connection, "push/night_state.sql", {"business_date": day})[0]
    if not state["checked_count"]:
        raise GateRed(
            f"the marts of {day} have not passed a gate: run build_marts for that date first. Nothing is sent."
        )
    if state["failed_checks"]:
        raise GateRed(f"the night of {day} is red ({state['failed_checks']}): look at build_marts. Nothing is sent.")
    return f"the gates of {day} are green"
