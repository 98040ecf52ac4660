"""The platforms behind the sandbox's HTTP port, in one tuple. A new platform is its own module and one line here."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from .faults import Fault
from .jd import Jd
from .jpush import JPush
from .pages import Pages
from .pos import Pos
from .rest import Rest
from .robots import Robots
from .shopify import Shopify
from .sms_aliyun import SmsAliyun
from .sms_tencent import SmsTencent
from .state import World
from .top import Top
from .wechat_official import WechatOfficial
from .wechat_pay import WechatPay
from .wechat_store import WechatStore
from .wecom import Wecom
from .weibo import Weibo
from .weidian import Weidian
from .wire import Answer, Request
from .woocommerce import WooCommerce
from .youzan import Youzan


class Platform(Protocol):
    platform: ClassVar[str]  # its name in access.json, the counters and the faults
    prefixes: ClassVar[tuple[str, ...]]  # of the paths it answers; the longest one that fits wins

    def method(self, request: Request) -> str:
        """The name of what is called: what faults and counters go by."""

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        """The answer; `fault` is one of the kinds that only some platforms know."""

    def access(self, base_url: str) -> dict[str, Any]:
        """Addresses, keys and secrets: its block of access.json."""

    def reset(self) -> None:
        """Forget tokens, quotas and whatever else is not the world's."""


PLATFORMS: tuple[type[Any], ...] = (
    Jd,
    Rest,
    Shopify,
    WooCommerce,
    Top,
    WechatOfficial,
    WechatPay,
    Pages,
    Pos,
    WechatStore,
    Weibo,
    Youzan,
    Weidian,
    JPush,
    Wecom,
    Robots,
    SmsAliyun,
    SmsTencent,
)


def every_platform(world: World) -> Sequence[Platform]:
    """One of each, with keys made now."""
    return [platform(world) for platform in PLATFORMS]
