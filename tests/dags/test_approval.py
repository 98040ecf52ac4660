"""A yes, a no and a silence all reach the task that writes them down; below the limit nobody is asked."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nightmarket.orchestration.approval import RecordedApproval


class Recorder:
    """The two things of a task instance the operator uses."""

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}
        self.id = "ti"

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


def answer(choice: str, user: dict[str, str] | None, reason: str = "") -> dict[str, Any]:
    return {
        "chosen_options": [choice],
        "params_input": {"reason": reason} if user else {},
        "responded_at": datetime(2026, 3, 15, tzinfo=UTC),
        "responded_by_user": user,
        "timedout": user is None,
    }


def decide(event: dict[str, Any]) -> dict[str, Any]:
    operator, ti = RecordedApproval(task_id="approve", subject="send?", answer_within_hours=4), Recorder()
    operator.execute_complete({"ti": ti}, event)
    return dict(ti.pushed["decision"])


VERA = {"id": "1", "name": "vera"}


def test_yes() -> None:
    expected = {"approved": True, "by": "vera", "reason": "looks right", "is_timed_out": False}
    assert decide(answer("Approve", VERA, "looks right")) == expected


def test_no_reaches_the_record_instead_of_skipping_it() -> None:
    decision = decide(answer("Reject", VERA, "wrong price"))
    assert decision == {"approved": False, "by": "vera", "reason": "wrong price", "is_timed_out": False}


def test_silence_is_no() -> None:
    assert RecordedApproval(task_id="approve", subject="send?", answer_within_hours=4).defaults == ["Reject"]
    decision = decide(answer("Reject", None))
    assert decision == {"approved": False, "by": "nobody (time-out)", "reason": "", "is_timed_out": True}


def test_an_answer_that_is_not_on_the_form_is_refused() -> None:
    with pytest.raises(ValueError, match="Maybe"):
        decide(answer("Maybe", VERA))


def test_below_the_limit_nobody_is_asked() -> None:
    options = {"needed": False, "answer_within_hours": "None"}  # as the template gives it when nobody is to be asked
    operator, ti = RecordedApproval(task_id="approve", subject="send?", **options), Recorder()
    operator.execute({"ti": ti})
    assert ti.pushed["decision"]["approved"] is True
    assert ti.pushed["decision"]["by"] == "policy"


def test_above_the_limit_the_task_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.standard.operators import hitl

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **details: asked.append(details))
    operator = RecordedApproval(
        task_id="approve", subject="send to 4,338?", body="report", needed=True, answer_within_hours="0.5"
    )
    with pytest.raises(BaseException) as caught:
        operator.execute({"task_instance": Recorder()})
    assert type(caught.value).__name__ == "TaskAwaitingInput"
    assert asked[0]["subject"] == "send to 4,338?"
    assert asked[0]["defaults"] == ["Reject"]
    assert operator.response_timeout == timedelta(minutes=30)
    assert asked[0]["body"] == "report\n\n0.5 小时内没有答复即视为拒绝。No answer within 0.5 hours is a no."
