"""All channels by name. A new channel is one module here, one block in channels.yaml, one page in docs/connections."""

from nightmarket.channels.base import Channel
from nightmarket.channels.email import Email
from nightmarket.channels.jpush import JPush
from nightmarket.channels.sms_aliyun import SmsAliyun
from nightmarket.channels.sms_tencent import SmsTencent
from nightmarket.channels.wechat_mass import WeChatMass
from nightmarket.channels.wechat_service import WeChatService
from nightmarket.channels.wechat_subscribe import WeChatSubscribe
from nightmarket.channels.wechat_template import WeChatTemplate
from nightmarket.channels.wecom_broadcast import WecomBroadcast

CHANNELS: dict[str, type[Channel]] = {
    channel.name: channel
    for channel in (
        Email,
        JPush,
        SmsAliyun,
        SmsTencent,
        WeChatMass,
        WeChatService,
        WeChatSubscribe,
        WeChatTemplate,
        WecomBroadcast,
    )
}
