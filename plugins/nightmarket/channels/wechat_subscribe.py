"""WeChat subscription notice (订阅通知): one notice for each time the person allowed one of this template.

How many a person still allows stands in push.subscribe_balance (accepted on our pages, less what we called for since); the outbox
looks there before a call, and WeChat itself refuses with 43101 when there is nothing left.
"""

from typing import ClassVar

from nightmarket.channels.base import Call, Outcome
from nightmarket.channels.wechat import WeChatChannel

NOTHING_LEFT = 43101
BAD_PAGE = 41030
CONCURRENT = 43108  # M: somebody else sends this person the same notice right now


class WeChatSubscribe(WeChatChannel):
    """Nothing protects against a repeat: a lost answer stays unknown.

    The event subscribe_msg_sent_event says what became of a notice, by the msgid of the answer. Whether the answer names one is not
    confirmed; without it a notice stays accepted.
    """

    name: ClassVar[str] = "wechat_subscribe"
    reports_delivery: ClassVar[bool] = True
    own_codes: ClassVar[frozenset[int]] = frozenset({NOTHING_LEFT, BAD_PAGE, CONCURRENT})

    async def send(self, call: Call) -> Outcome:
        body = {
            "touser": call.addresses[0],
            "template_id": call.content.template_id,
            "page": call.link,
            "data": {name: {"value": value} for name, value in call.content.fields.items()},
        }
        answer = await self.call("/cgi-bin/message/subscribe/bizsend", body)
        if isinstance(answer, Outcome):
            return answer
        code = int(answer.data.get("errcode") or 0)
        if code == NOTHING_LEFT:  # about this template only, so the person is not suppressed
            return Outcome(
                "refused", "", answer.status, str(code), "the person allows no more notices of this template"
            )
        if code == BAD_PAGE:
            return Outcome(
                "pause", "", answer.status, str(code), "WeChat does not accept the address of our pages", 3600
            )
        if code == CONCURRENT:
            return Outcome("retry", "", answer.status, str(code), "another notice to this person is on its way", 5)
        return Outcome("accepted", str(answer.data.get("msgid") or ""), answer.status, "0")
