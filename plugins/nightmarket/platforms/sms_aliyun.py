"""What Aliyun SMS pushes: SmsReport (what became of a message) and SmsUp (what people reply).

Wire facts: docs/connections/sms_aliyun.md. Sending is the channel of the same name; here nothing is asked from the vendor.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from nightmarket.platforms.base import Check, PushAnswer, PushRequest, Record, Stream, Transport
from nightmarket.platforms.sms_push import REPLY, REPORT, Client, SmsOptions, stream, take
from nightmarket.settings import Credentials

NAME = "sms_aliyun"
ANSWER = b'{"code":0,"msg":"ok"}'


class Options(SmsOptions):
    """`options:` of the source."""

    dead_codes: tuple[str, ...] = ("MOBILE_NOT_ON_SERVICE", "MOBILE_IN_BLACK", "USER_REJECT")


def connect(
    credentials: Credentials, transport: Transport, *, options: Options, page_sizes: Mapping[str, int] | None = None
) -> Client:
    """Raises ConfigError when the secret of the pushes is missing."""
    credentials.require({"login": "access key id", "extra.push_secret": "secret in the address of the pushes"})
    return Client(credentials.login, transport)


def _read(options: Options, row: Record) -> Record:
    if "success" in row:
        code = str(row.get("err_code") or "")
        return {"kind": REPORT, "outcome": options.outcome(row["success"] in (True, "true"), code)}
    if "content" in row:
        return {"kind": REPLY, "is_refusal": options.is_refusal(row["content"])}
    return {"kind": "unknown"}


def streams(options: Options) -> Mapping[str, Stream]:
    """The one stream: receipts and replies."""
    events = stream({"data.phone_number": "phone"}, ("data.content", "data.err_msg"), partial(_read, options))
    return {events.name: events}


def receive(credentials: Credentials, request: PushRequest) -> PushAnswer:
    """A push of SmsReport or SmsUp; repeated after 1, 5 and 10 minutes until it is answered like this."""
    return take(credentials, request, ANSWER)


def check(client: Client, names: Sequence[str]) -> Check:
    """Nothing can be tried from here; the connection's test button asks the vendor whether the key works."""
    return Check(f"pushes of access key {client.account[:4]}…, once their address is in the vendor's console")
