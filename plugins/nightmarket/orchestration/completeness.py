"""Is everything of a business date in core? Asked before marts are computed, because an asset event is only a hint.

A source that was extracted by hand during the day leaves an event behind; the next night then starts as soon as the
*other* sources have published. The tables know better than the events (docs/decisions/0045-events-are-hints.md).
"""

from datetime import date

from nightmarket.warehouse import connect, run_sql

QUESTIONS = ("checks/core/streams_read_to_the_end.sql", "checks/core/nothing_left_to_map.sql")


class SourcesBehind(Exception):
    """A source has not been read or mapped to the end of the business date, as one sentence."""


def require_complete(day: date) -> None:
    """Raise SourcesBehind unless every stream of every source was read to the end of `day` and mapped."""
    with connect(application_name="nightmarket-completeness") as connection:
        for question in QUESTIONS:
            (answer,) = run_sql(connection, question, {"business_date": day})
            if not answer["is_passed"]:
                raise SourcesBehind(f"business date {day} is not complete in core yet: {answer['observed']}.")
