"""A person's yes or no before anything is sent, recorded whatever it is."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator
from airflow.sdk import Param


class RecordedApproval(ApprovalOperator):
    """ApprovalOperator whose answer reaches the next task, also when it is Reject or a time-out.

    The stock operator skips its children on Reject and leaves no XCom, so nobody could write the refusal down. This one
    pushes XCom `decision` = {"approved", "by", "reason", "is_timed_out"} and lets its child run; the child records the
    decision and stops the run. With `needed` false (the size is below the limit) nobody is asked. Silence for
    `answer_within_hours` is a no; the question says so.
    """

    template_fields: Sequence[str] = (*ApprovalOperator.template_fields, "needed", "answer_within_hours")

    def __init__(self, *, answer_within_hours: Any, needed: Any = True, **options: Any) -> None:
        options.setdefault("defaults", ApprovalOperator.REJECT)  # what silence means
        options.setdefault("params", {"reason": Param("", type=["null", "string"], title="Reason 理由")})
        super().__init__(**options)
        self.needed = needed
        self.answer_within_hours = answer_within_hours

    def execute(self, context: Any) -> Any:
        if self.needed:
            hours = float(self.answer_within_hours)
            self.response_timeout = timedelta(hours=hours)
            self.body = f"{self.body}\n\n{hours:g} 小时内没有答复即视为拒绝。No answer within {hours:g} hours is a no."
            return super().execute(context)
        self.log.info("no approval needed: the audience is not above the limit set for this campaign")
        self._push(context, approved=True, by="policy", reason="size is not above the approval limit", timed_out=False)
        return None

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        answer = HITLOperator.execute_complete(self, context, event)  # not ApprovalOperator's: it would skip the record
        who = (answer["responded_by_user"] or {}).get("name") or (answer["responded_by_user"] or {}).get("id")
        approved = answer["chosen_options"] == [self.APPROVE]
        reason = str((answer["params_input"] or {}).get("reason") or "")
        timed_out = bool(event.get("timedout")) or who is None
        self._push(context, approved=approved, by=who or "nobody (time-out)", reason=reason, timed_out=timed_out)
        return None

    def _push(self, context: Any, *, approved: bool, by: str, reason: str, timed_out: bool) -> None:
        decision = {"approved": approved, "by": by, "reason": reason, "is_timed_out": timed_out}
        self.log.info("decision: %s", decision)
        context["ti"].xcom_push(key="decision", value=decision)
