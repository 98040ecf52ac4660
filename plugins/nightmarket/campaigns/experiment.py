"""Experiments: who is in which arm, what so many members can show, and what the arms showed in the end.

Arms by salted hash: the same member is always in the same arm, on every machine, in Python and in SQL. sha256 is used
because its values are a promise for ever; PostgreSQL's internal hash functions are not. A hold-out lasts as long as its
salt: the same members are held out of every run of a campaign. The hash is of the resolved member; who turns out to be
somebody else has the survivor's arm from then on (docs/decisions/0077-experiments.md).

Statistics come from statsmodels and scipy, imported where they are used: they take a second, and few tasks need them. The
whole run against its hold-out is computed every night, in mart.campaign_results; this module knows what a run can show
before it is sent, whether chance split the members, and what each variant showed.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

HASH_BITS = 48  # fits a double exactly, so both languages compute the same number
LEVEL = 0.05  # two-sided; intervals cover 95 %
POWER = 0.8
SUSPICIOUS = 0.001  # chance splits members like this once in a thousand runs: look for what loses them
MIN_EXPECTED = 5  # members in every arm, or the chi-square test says nothing

Verdict = Literal["not enough data", "no effect shown", "positive", "negative"]


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


def sample_ratio(
    held_out: int, variants: Mapping[str, int], holdout_share: Decimal, shares: Mapping[str, Decimal], cut: int = 0
) -> float | None:
    """How likely chance alone splits the members at least as unevenly over all arms (chi-square); None: too few to say.

    `variants` counts the treated by variant; `cut` are members left out after the draw by the size limit, whose variant is
    not known: they count as treated in the draw of the hold-out, and the variants are looked at without them.
    """
    from scipy.stats import chi2, chisquare

    treated = sum(variants.values())
    total, share = held_out + treated + cut, float(holdout_share)
    tests = [([held_out, treated + cut], [total * share, total * (1 - share)])] if share > 0 else []
    if len(variants) > 1:
        tests.append(([variants[name] for name in shares], [treated * float(part) for part in shares.values()]))
    if not tests or min(value for _, expected in tests for value in expected) < MIN_EXPECTED:
        return None
    # two independent draws: their statistics add up, as their degrees of freedom do
    statistic = sum(float(chisquare(seen, expected).statistic) for seen, expected in tests)
    return float(chi2.sf(statistic, sum(len(seen) - 1 for seen, _ in tests)))


def minimum_detectable_uplift(treated: int, held_out: int, base_rate: float, comparisons: int = 1) -> float | None:
    """The smallest rise of the rate that so many members show with 80 % power at 5 %, two-sided; None if too few.

    By Cohen's h, which holds for rare events too. With several `comparisons` each is asked to pass the strictest step of
    Holm's correction.
    """
    if treated < 2 or held_out < 2:
        return None
    from statsmodels.stats.power import NormalIndPower

    h = float(NormalIndPower().solve_power(
        nobs1=treated, alpha=LEVEL / comparisons, power=POWER, ratio=held_out / treated
    ))  # fmt: skip
    angle = math.asin(math.sqrt(base_rate)) + h / 2
    return math.sin(angle) ** 2 - base_rate if angle < math.pi / 2 else None


@dataclass(frozen=True)
class Arm:
    """What became of the members of an arm: how many, how many bought, what they left us, and the sum of its squares."""

    members: int
    buyers: int
    net_revenue: float
    square_sum: float

    @property
    def rate(self) -> float:
        return self.buyers / self.members if self.members else math.nan

    @property
    def mean(self) -> float:
        return self.net_revenue / self.members if self.members else math.nan

    @property
    def weighty_buyers(self) -> float:
        """How many buyers of one size would spread the revenue like this: a few large orders count as few."""
        return self.net_revenue**2 / self.square_sum if self.square_sum else 0.0


@dataclass(frozen=True)
class Comparison:
    """A variant against the hold-out. Intervals are of 95 % and of this variant alone; the verdict is after correction."""

    variant: str
    uplift_rate: float
    uplift_low_rate: float
    uplift_high_rate: float
    p_value: float
    adjusted_p_value: float
    revenue_difference: float  # net revenue per member
    revenue_low: float | None
    revenue_high: float | None
    verdict: Verdict


def compare_variants(variants: Mapping[str, Arm], held_out: Arm, min_members: int, min_buyers: int) -> list[Comparison]:
    """Every variant against the hold-out: Agresti-Caffo for the rate, Welch for the revenue, Holm over the variants.

    Variants with too few members or buyers say so; they take part in the correction, because they were looked at. Without
    members on both sides there is nothing to compare: [].
    """
    from numpy import errstate
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.proportion import confint_proportions_2indep, test_proportions_2indep

    compared = {name: own for name, own in variants.items() if own.members and held_out.members}
    if not compared:
        return []
    pairs = {name: (own.buyers, own.members, held_out.buyers, held_out.members) for name, own in compared.items()}
    with errstate(
        divide="ignore", invalid="ignore"
    ):  # ratios of nothing, which statsmodels makes beside the difference
        p_values = [
            float(test_proportions_2indep(*pair, compare="diff", method="agresti-caffo").pvalue)
            for pair in pairs.values()
        ]
    adjusted = p_values if len(p_values) == 1 else [float(p) for p in multipletests(p_values, method="holm")[1]]
    found = []
    for (name, own), p_value, corrected in zip(compared.items(), p_values, adjusted, strict=True):
        low, high = confint_proportions_2indep(*pairs[name], compare="diff", method="agresti-caffo", alpha=LEVEL)
        is_small = min(own.members, held_out.members) < min_members or own.buyers + held_out.buyers < min_buyers
        verdict: Verdict = "no effect shown"
        if is_small:
            verdict = "not enough data"
        elif corrected < LEVEL:
            verdict = "positive" if low + high > 0 else "negative"  # by the middle of the interval, which p_value is of
        revenue_low, revenue_high = _welch(own, held_out)
        found.append(
            Comparison(
                name, own.rate - held_out.rate, float(low), float(high), p_value, corrected, own.mean - held_out.mean,
                revenue_low, revenue_high, verdict,
            )
        )  # fmt: skip
    return found


def _welch(own: Arm, other: Arm) -> tuple[float | None, float | None]:
    """The interval of the difference of net revenue per member, with the normal approximation, as in the mart."""
    from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

    if min(own.members, other.members) < 2:
        return None, None
    low, high = CompareMeans(*(DescrStatsW(*_alike(side)) for side in (own, other))).zconfint_diff(usevar="unequal")
    return float(low), float(high)


def _alike(side: Arm) -> tuple[list[float], list[float]]:
    """Two values and how often each: as many members as the arm has, with its mean and its variance, which is all that
    Welch looks at."""
    half = math.sqrt(max(side.square_sum / side.members - side.mean**2, 0.0))
    return [side.mean - half, side.mean + half], [side.members / 2] * 2


def change_of_uplift(now: Mapping[str, Any], then: Mapping[str, Any]) -> tuple[float, float, float]:
    """(difference, low, high) of the uplifts of two runs, from rows of mart.campaign_results.

    The intervals are symmetric around a middle that Agresti and Caffo draw a little towards zero; of two independent runs
    their half widths add up as squares.
    """
    ends = [(float(row["uplift_low_rate"]), float(row["uplift_high_rate"])) for row in (now, then)]
    middles, halves = [(low + high) / 2 for low, high in ends], [(high - low) / 2 for low, high in ends]
    difference, half = middles[0] - middles[1], math.hypot(*halves)
    return float(now["uplift_rate"]) - float(then["uplift_rate"]), difference - half, difference + half
