"""WeChat mass send by openid (群发): the same text to 2 to 10,000 followers in one call, at most 4 a month for each.

`clientmsgid` makes the call repeatable: a second call with the same id is answered 45065 with the first one's msg_id.
"""

from typing import ClassVar

from nightmarket.channels.base import Call, Outcome
from nightmarket.channels.wechat import WeChatChannel

MIN_RECEIVERS = 2
MAX_RECEIVERS = 10_000
MAX_KEY_BYTES = 64
ALREADY_ACCEPTED = 45065


class WeChatMass(WeChatChannel):
    name: ClassVar[str] = "wechat_mass"
    is_group: ClassVar[bool] = True
    is_repeatable: ClassVar[bool] = True
    is_personal: ClassVar[bool] = False
    own_codes: ClassVar[frozenset[int]] = frozenset({ALREADY_ACCEPTED})

    async def send(self, call: Call) -> Outcome:
        if not MIN_RECEIVERS <= len(call.addresses) <= MAX_RECEIVERS:
            return Outcome("refused", code="receivers", message=f"mass send takes {MIN_RECEIVERS} to {MAX_RECEIVERS} receivers, not {len(call.addresses)}")  # fmt: skip
        if len(call.key.encode()) > MAX_KEY_BYTES:
            return Outcome("refused", code="clientmsgid", message=f"the group key is longer than {MAX_KEY_BYTES} bytes")
        body = {
            "touser": list(call.addresses),
            "msgtype": "text",
            "text": {"content": call.content.text},
            "clientmsgid": call.key,
        }
        answer = await self.call("/cgi-bin/message/mass/send", body)
        if isinstance(answer, Outcome):
            return answer
        code = str(answer.data.get("errcode") or 0)
        return Outcome("accepted", str(answer.data.get("msg_id") or ""), answer.status, code,
                       "repeated, accepted before" if code != "0" else "")  # fmt: skip
