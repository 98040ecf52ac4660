"""What SMS channels share: a template that the vendor has approved, one number a call, our message key as the vendor's out-id.

No vendor recognises a repeated call: a lost answer stays unknown until the vendor is asked, a receipt comes or a person decides.
"""

import re
from abc import abstractmethod
from datetime import date, timedelta
from typing import ClassVar

from nightmarket import dates
from nightmarket.channels.base import Call, Family, HttpChannel, Outcome
from nightmarket.privacy import normalise
from nightmarket.settings import Credentials

MAINLAND_NUMBER = re.compile(r"1\d{10}")
PERSON_PAUSE_SECONDS = 6 * 3600.0
MOST_BAD_VALUES = 5  # refusals of values in a row: one name may be the reason for one of them, not for all


class SmsChannel(HttpChannel):
    """Base of the SMS channels: session, number, and what a refused value means."""

    family: ClassVar[Family] = "sms"
    reports_delivery: ClassVar[bool] = True
    can_ask: ClassVar[bool] = True
    _bad_values = 0

    async def send(self, call: Call) -> Outcome:
        number = mainland_number(call.addresses[0])
        if number is None:
            return Outcome("refused", code="number", message="not a mainland mobile number", suppress="invalid number")
        if not call.content.template_id or not call.content.sign:
            problem = f"no template id or signature for {self.name}; see meta.yaml of the template and channels.yaml"
            return Outcome("pause", code="template", message=problem, retry_after=PERSON_PAUSE_SECONDS)
        outcome = await self.send_to(number, call)
        if outcome.kind == "accepted":
            self._bad_values = 0
        return outcome

    @abstractmethod
    async def send_to(self, number: str, call: Call) -> Outcome:
        """Make the call for a number of 11 digits."""

    @abstractmethod
    async def check(self) -> str:
        """Whether the account works, in a sentence; nothing is sent. Raises ConfigError."""

    def bad_value(self, status: int, code: str, message: str) -> Outcome:
        """The vendor refuses a value (a word in a name, its length): this message fails alone, many in a row stop the channel."""
        self._bad_values += 1
        if self._bad_values < MOST_BAD_VALUES:
            return Outcome("refused", "", status, code, message)
        return stopped(status, code, f"{message}; {self._bad_values} messages in a row, so it is the template")


async def check(channel: type[SmsChannel], credentials: Credentials) -> str:
    """Open an account and say in a sentence whether it works. Raises ConfigError."""
    async with channel(credentials, connections=1, timeout_seconds=10) as opened:
        return await opened.check()


def mainland_number(text: str) -> str | None:
    """The 11 digits of a mainland mobile number, however it is written; None for anything else."""
    number = normalise("phone", text)
    is_foreign = text.strip().startswith("+") and not text.strip().startswith("+86")
    return number if MAINLAND_NUMBER.fullmatch(number) and not is_foreign else None


def stopped(status: int | None, code: str, message: str, seconds: float = PERSON_PAUSE_SECONDS) -> Outcome:
    """Nothing was sent and the next call would fare no better: content, account or signature need a person."""
    return Outcome("pause", "", status, code, message, seconds)


def seconds_until(day: date, hour: int = 0) -> float:
    """Until that hour of a day of the house's clock."""
    return max(0.0, (dates.day_start(day) + timedelta(hours=hour) - dates.now()).total_seconds())


def tomorrow() -> date:
    return dates.today() + timedelta(days=1)


def next_month() -> date:
    return (dates.today().replace(day=28) + timedelta(days=4)).replace(day=1)


def without_numbers(text: object) -> str:
    """Vendors like to repeat the number in a refusal; what is kept in the database must not name a person."""
    return re.sub(r"\+?\d{11,}", "(number)", str(text or ""))[:200]
