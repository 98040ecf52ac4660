"""WeChat template message (模板消息): a service notice to a follower; never a coupon, never advertising (rule 3.9)."""

import hashlib
from typing import ClassVar

from nightmarket.channels.base import Call, Outcome
from nightmarket.channels.wechat import WeChatChannel


class WeChatTemplate(WeChatChannel):
    """Delivery is reported later by the event TEMPLATESENDJOBFINISH with the message id of the answer.

    `client_msg_id` is sent, but its protection against repeats is not documented well enough to rely on: a lost answer
    stays unknown.
    """

    name: ClassVar[str] = "wechat_template"
    reports_delivery: ClassVar[bool] = True

    async def send(self, call: Call) -> Outcome:
        body = {
            "touser": call.addresses[0],
            "template_id": call.content.template_id,
            "url": call.link,
            "client_msg_id": hashlib.sha256(call.key.encode()).hexdigest()[:32],
            "data": {name: {"value": value} for name, value in call.content.fields.items()},
        }
        answer = await self.call("/cgi-bin/message/template/send", body)
        if isinstance(answer, Outcome):
            return answer
        return Outcome("accepted", str(answer.data.get("msgid") or ""), answer.status, "0")
