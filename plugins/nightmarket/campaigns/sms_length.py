"""How long an SMS is as operators bill it, and what stands around its text: 【signature】 before it, the way to refuse behind it.

The vendor adds the signature, and the approved template ends with the way to refuse; so neither stands in our text, and each
counts once.
"""

from dataclasses import dataclass

from nightmarket.campaigns.config import Channel
from nightmarket.channels.registry import CHANNELS

SINGLE_UNITS = 70  # of a message in one part
PART_UNITS = 67  # of each part of a longer one: three carry the number of the part


def billed_units(text: str) -> int:
    """Characters as the network carries them (UCS-2): a letter and a Chinese character are one, most emoji two."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def segments(text: str) -> int:
    """How many messages are billed for a text with everything around it."""
    units = billed_units(text)
    return 1 if units <= SINGLE_UNITS else -(-units // PART_UNITS)


@dataclass(frozen=True)
class SmsFrame:
    """What one SMS channel puts around every text, and how long the whole may be."""

    channel: str
    sign: str
    opt_out: str  # what marketing messages end with; notices must not
    max_units: int

    @classmethod
    def of(cls, name: str, channel: Channel) -> "SmsFrame | None":
        """The frame of a channel of channels.yaml; None when it sends no SMS."""
        if CHANNELS[name].family != "sms":
            return None
        opt_out = next((rule.opt_out_suffix for rule in channel.rules if rule.opt_out_suffix), "")
        return cls(name, channel.sign or "", opt_out, channel.max_characters)

    def around(self, text: str, purpose: str) -> str:
        """The message as the phone shows it and the operator bills it."""
        return f"【{self.sign}】{text}{self.opt_out if purpose == 'marketing' else ''}"
