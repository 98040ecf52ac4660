"""WeChat customer-service message (客服消息): text to a person who wrote to us less than 48 hours ago."""

from typing import ClassVar

from nightmarket.channels.base import Call, Outcome
from nightmarket.channels.wechat import WeChatChannel


class WeChatService(WeChatChannel):
    """The answer carries no message id and nobody reports delivery; a lost answer stays unknown."""

    name: ClassVar[str] = "wechat_service"

    async def send(self, call: Call) -> Outcome:
        body = {"touser": call.addresses[0], "msgtype": "text", "text": {"content": call.content.text}}
        answer = await self.call("/cgi-bin/message/custom/send", body)
        return answer if isinstance(answer, Outcome) else Outcome("accepted", http_status=answer.status, code="0")
