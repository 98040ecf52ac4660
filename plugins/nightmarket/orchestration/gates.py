"""No message goes out on a red gate: asked before an audience is built and once more before the first message is queued."""

from datetime import date

from nightmarket.warehouse import connect

# The newest result of every check of the newest gate run for that date: a repeated gate replaces what it said before.
LAST_GATE = """
SELECT count(*) AS checks,
       count(*) FILTER (WHERE severity = 'fail' AND NOT is_passed) AS red,
       min(table_name || '.' || check_name || ': ' || message) FILTER (WHERE severity = 'fail' AND NOT is_passed) AS first_red
FROM (
    SELECT DISTINCT ON (table_name, check_name) table_name, check_name, severity, is_passed, message
    FROM ops.gate_results
    WHERE gate = %(gate)s AND business_date = %(day)s
      AND run_id = (SELECT run_id FROM ops.gate_results WHERE gate = %(gate)s AND business_date = %(day)s
                    ORDER BY checked_at DESC, result_id DESC LIMIT 1)
    ORDER BY table_name ASC, check_name ASC, checked_at DESC, result_id DESC
) AS newest
"""


class GateRed(Exception):
    """The last gate of a business date did not pass, or never ran, as one sentence."""


def require_green(gate: str, day: date) -> str:
    """A sentence when the last `gate` of business date `day` passed. Raises GateRed."""
    with connect(application_name="nightmarket-gate") as connection:
        row = connection.execute(LAST_GATE, {"gate": gate, "day": day}).fetchone()
    if not row or not row["checks"]:
        raise GateRed(
            f"no {gate} gate has run for business date {day}: run build_marts for it first. Nothing was sent."
        )
    if row["red"]:
        raise GateRed(
            f"the {gate} gate of business date {day} is red ({row['red']} of {row['checks']} checks; first: "
            f"{row['first_red']}). Nothing was sent."
        )
    return f"the {gate} gate of business date {day} is green ({row['checks']} checks)"
