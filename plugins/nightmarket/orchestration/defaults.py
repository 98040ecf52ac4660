"""What every task of ours has: an owner, retries by kind of error, a time limit, and an alert when it fails for good."""

from datetime import timedelta
from typing import Any

from airflow.sdk import RetryDecision, RetryPolicy

from nightmarket.orchestration.alerts import record_failure
from nightmarket.orchestration.hooks import use_airflow_connections

ZONE = "Asia/Shanghai"
NIGHT_CRON = "0 2 * * *"  # in ZONE


class RetryByKind(RetryPolicy):
    """Wait as long as the platform asks, do not repeat what cannot get better, leave the rest to `retries`.

    A refused credential, a broken configuration, a red gate, a broken law and a bad argument need a person: repeating
    them only hides them for a while. A platform that is down or sends garbage may be well again in a moment.
    """

    def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Any = None) -> RetryDecision:
        from nightmarket.platforms.base import AuthError, RateLimited, Refused
        from nightmarket.settings import ConfigError

        if isinstance(exception, RateLimited):
            wait = timedelta(seconds=max(1.0, float(exception.retry_after or 30)))
            return RetryDecision.retry(wait, f"the platform asked to wait {wait.total_seconds():.0f} s")
        if (
            isinstance(exception, (AuthError, Refused, ConfigError, ValueError))
            or type(exception).__name__ in NEEDS_A_PERSON
        ):
            return RetryDecision.fail(f"{type(exception).__name__} needs a person, not another attempt")
        return RetryDecision.default()


NEEDS_A_PERSON = frozenset({"GateFailed", "LawBroken"})  # by name: their modules are not imported for it

DEFAULT_ARGS: dict[str, Any] = {
    "owner": "nightmarket",
    "retries": 2,
    "retry_delay": timedelta(seconds=30),
    "retry_policy": RetryByKind(),
    "execution_timeout": timedelta(hours=1),
    "on_execute_callback": use_airflow_connections,
    "on_failure_callback": record_failure,
}
