"""Platforms that issue coupons, by the name a stock's `issuer` says. Codes of our own need none: nightmarket.campaigns.codes."""

from collections.abc import Mapping

from nightmarket.campaigns.config import Stock
from nightmarket.campaigns.issuers.base import Issuer
from nightmarket.campaigns.issuers.taobao_benefit import TaobaoBenefit
from nightmarket.campaigns.issuers.wechat_pay import WeChatPayIssuer
from nightmarket.campaigns.issuers.youzan import YouzanVoucher
from nightmarket.settings import credentials

ISSUERS: Mapping[str, type[Issuer]] = {
    "wechat_pay": WeChatPayIssuer,
    "taobao_benefit": TaobaoBenefit,
    "youzan": YouzanVoucher,
}


def open_issuer(stock: Stock, *, connections: int) -> Issuer:
    """The platform of a stock, to be used as `async with`. Raises ConfigError when its connection is not complete."""
    kind = ISSUERS[stock.issuer]
    return kind(credentials(stock.account or kind.account), stock, connections=connections)
