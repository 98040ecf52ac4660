"""All channels by name. A new channel is one module here, one block in channels.yaml, one page in docs/connections."""

from nightmarket.channels.base import Channel
from nightmarket.channels.email import Email
from nightmarket.channels.wechat_mass import WeChatMass
from nightmarket.channels.wechat_service import WeChatService
from nightmarket.channels.wechat_template import WeChatTemplate

CHANNELS: dict[str, type[Channel]] = {
    channel.name: channel for channel in (Email, WeChatMass, WeChatService, WeChatTemplate)
}
