"""What Tencent Cloud SMS calls back: the status of a message, and what people reply.

Wire facts: docs/connections/sms_tencent.md. Sending is the channel of the same name; here nothing is asked from the vendor.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from nightmarket.platforms.base import Check, PushAnswer, PushRequest, Record, Stream, Transport
from nightmarket.platforms.sms_push import REPLY, REPORT, Client, SmsOptions, stream, take
from nightmarket.settings import Credentials

NAME = "sms_tencent"
ANSWER = b'{"result":0,"errmsg":"OK"}'


class Options(SmsOptions):
    """`options:` of the source."""

    dead_codes: tuple[str, ...] = ("BLACK", "NOUSER")


def connect(
    credentials: Credentials, transport: Transport, *, options: Options, page_sizes: Mapping[str, int] | None = None
) -> Client:
    """Raises ConfigError when the secret of the callbacks is missing."""
    credentials.require(
        {"extra.sdk_app_id": "SmsSdkAppId", "extra.push_secret": "secret in the address of the callbacks"}
    )
    return Client(str(credentials.extra["sdk_app_id"]), transport)


def _read(options: Options, row: Record) -> Record:
    if "report_status" in row:
        code = str(row.get("errmsg") or "")
        return {"kind": REPORT, "outcome": options.outcome(row["report_status"] == "SUCCESS", code)}
    if "text" in row:
        return {"kind": REPLY, "is_refusal": options.is_refusal(row["text"])}
    return {"kind": "unknown"}


def streams(options: Options) -> Mapping[str, Stream]:
    """The one stream: statuses and replies."""
    events = stream({"data.mobile": "phone"}, ("data.text", "data.description"), partial(_read, options))
    return {events.name: events}


def receive(credentials: Credentials, request: PushRequest) -> PushAnswer:
    """A callback: statuses come in an array, replies one by one."""
    return take(credentials, request, ANSWER)


def check(client: Client, names: Sequence[str]) -> Check:
    """Nothing can be tried from here; the connection's test button asks the vendor whether the key works."""
    return Check(f"callbacks of application {client.account}, once their address is in the vendor's console")
