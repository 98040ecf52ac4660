"""Arms by salted hash: the same member is always in the same arm, on every machine, in Python and in SQL.

sha256 is used because its values are a promise for ever; PostgreSQL's internal hash functions are not. A hold-out lasts
as long as its salt: the same members are held out of every run of a campaign.
"""

import hashlib
import math
from collections.abc import Sequence
from decimal import Decimal

HASH_BITS = 48  # fits a double exactly, so both languages compute the same number


def unit(salt: str, member_id: int) -> float:
    """A number in [0, 1) that belongs to this member under this salt. include/sql/push/audience.sql has the same formula."""
    digest = hashlib.sha256(f"{salt}:{member_id}".encode()).hexdigest()
    return int(digest[: HASH_BITS // 4], 16) / 2**HASH_BITS


def thresholds(shares: Sequence[Decimal]) -> list[float]:
    """Upper bounds of all variants but the last: unit < bounds[0] is the first variant, and so on."""
    total = Decimal(0)
    bounds = []
    for share in shares[:-1]:
        total += share
        bounds.append(float(total))
    return bounds


def arm(
    salt: str, member_id: int, holdout_share: Decimal, variants: Sequence[tuple[str, Decimal]]
) -> tuple[str, str | None]:
    """("holdout", None) or ("treatment", variant name). The two draws are independent of each other."""
    if unit(f"{salt}:holdout", member_id) < float(holdout_share):
        return "holdout", None
    draw = unit(f"{salt}:variant", member_id)
    bounds = thresholds([share for _name, share in variants])
    return "treatment", variants[sum(draw >= bound for bound in bounds)][0]


def is_ratio_plausible(treated: int, held_out: int, holdout_share: Decimal, limit: float = 0.001) -> bool:
    """Could chance alone have split the members like this? False means something loses members of one arm.

    Two-sided normal test of the held-out share; True when there are too few members to say.
    """
    total, share = treated + held_out, float(holdout_share)
    deviation = math.sqrt(total * share * (1 - share))
    if deviation < 1:
        return True
    return math.erfc(abs(held_out - total * share) / deviation / math.sqrt(2)) >= limit


def minimum_detectable_uplift(treated: int, held_out: int, base_rate: float) -> float | None:
    """The smallest difference of rates that this many members show with 80 % power at 5 %, two-sided; None if too few."""
    if treated < 2 or held_out < 2:
        return None
    spread = math.sqrt(base_rate * (1 - base_rate) * (1 / treated + 1 / held_out))
    return (1.959964 + 0.841621) * spread
