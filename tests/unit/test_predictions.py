"""The model of expected orders and value: the published figures of the CDNOW sample, known parameters found again, laws."""

import csv
from datetime import date
from importlib.metadata import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import approx_fprime
from scipy.special import betaln, gammaln

from nightmarket.predictions import (
    Frequency,
    NoFitError,
    Numbers,
    Value,
    fit_frequency,
    fit_value,
    frequency_log_likelihood,
    sunday_of,
    value_log_likelihood,
)

PAPER = Frequency(0.243, 4.414, 0.793, 2.426)  # Fader, Hardie and Lee (2005), table 2
SHAPES = st.floats(0.2, 5)


@pytest.fixture(scope="module")
def cdnow() -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """The 1/10 sample of the CDNOW cohort: repeats, weeks to the last, weeks seen, mean dollars of a repeat purchase."""
    path = next(
        file for file in files("lifetimes") or () if file.name == "cdnow_customers_summary_with_transactions.csv"
    )
    with path.locate().open(encoding="utf-8") as file:  # type: ignore[attr-defined]
        rows = [[float(row[name]) for name in ("x", "t_x", "T", "zbar")] for row in csv.DictReader(file)]
    assert len(rows) == 2357
    repeats, recency, age, amount = np.array(rows).T
    return repeats, recency, age, amount


def simulated(model: Frequency, value: Value, members: int, weeks: float, later: float) -> tuple[Numbers, ...]:
    """Members who behave exactly as the model says: repeats, recency, age, mean amount, purchases in the `later` weeks after."""
    chance = np.random.default_rng(7)
    rows = []
    for age in chance.uniform(weeks / 2, weeks, members):
        rate, stop = chance.gamma(model.r, 1 / model.alpha), chance.beta(model.a, model.b)
        mean = value.p / chance.gamma(value.q, 1 / value.gamma)
        at, times = 0.0, []
        while (at := at + chance.exponential(1 / max(rate, 1e-12))) < age + later:
            times.append(at)
            if chance.random() < stop:
                break
        seen = [t for t in times if t <= age]
        amount = chance.gamma(value.p * len(seen), mean / value.p) / len(seen) if seen else 0
        rows.append((len(seen), seen[-1] if seen else 0, age, amount, len(times) - len(seen)))
    return tuple(np.array(rows, dtype=float).T)


# ------------------------------------------------------------------------------------------------------- published figures
def test_the_cdnow_sample_gives_the_published_frequencies(cdnow: tuple[Numbers, ...]) -> None:
    repeats, recency, age, _ = cdnow
    model, likelihood = fit_frequency(repeats, recency, age)
    assert (round(model.r, 3), round(model.alpha, 3), round(model.a, 3), round(model.b, 3)) == (
        0.243,
        4.414,
        0.793,
        2.426,
    )
    assert round(likelihood, 1) == -9582.4


def test_the_cdnow_sample_gives_the_published_amounts(cdnow: tuple[Numbers, ...]) -> None:
    repeats, _, _, amount = cdnow
    model, _ = fit_value(repeats[repeats > 0], amount[repeats > 0])
    assert (round(model.p, 2), round(model.q, 2), round(model.gamma, 2)) == (6.25, 3.74, 15.45)


def test_the_papers_example_of_a_customer() -> None:
    # "E(Y(39) | x = 2, t_x = 30.43, T = 38.86) = 1.226"
    expected = PAPER.expected_purchases(np.array([2.0]), np.array([30.43]), np.array([38.86]), 39)
    assert round(float(expected[0]), 3) == 1.226


def test_the_order_of_the_members_does_not_matter(cdnow: tuple[Numbers, ...]) -> None:
    repeats, recency, age, amount = cdnow
    there, back = np.arange(len(repeats)), np.arange(len(repeats))[::-1]
    assert fit_frequency(*(c[there] for c in (repeats, recency, age))) == fit_frequency(
        *(c[back] for c in (repeats, recency, age))
    )
    paying = repeats > 0
    assert fit_value(repeats[paying], amount[paying]) == fit_value(repeats[paying][::-1], amount[paying][::-1])


# ------------------------------------------------------------------------------------------------ by hand and by brute force
@settings(max_examples=30)
@given(SHAPES, SHAPES, SHAPES, SHAPES, st.integers(0, 12), st.floats(0.1, 1), st.floats(1, 60))
def test_the_likelihood_is_the_integral_over_the_members(
    r: float, alpha: float, a: float, b: float, repeats: int, share: float, age: float
) -> None:
    recency = age * share if repeats else 0.0

    def of_rate(rate: float) -> float:
        """Averaged over the probability of stopping, for one rate: alive to the end, or stopped at the last purchase."""
        alive = np.exp(betaln(a, b + repeats) - betaln(a, b) - rate * age)
        stopped = np.exp(betaln(a + 1, b + repeats - 1) - betaln(a, b) - rate * recency) if repeats else 0.0
        density = np.exp(r * np.log(alpha) + (r - 1) * np.log(rate) - alpha * rate - gammaln(r))
        return float(rate**repeats * (alive + stopped) * density)

    low, _ = quad(of_rate, 0, 1, limit=200)
    high, _ = quad(of_rate, 1, np.inf, limit=200)
    logs = np.log([r, alpha, a, b])
    value, _ = frequency_log_likelihood(logs, *(np.array([float(x)]) for x in (repeats, recency, age, 1)))
    assert value == pytest.approx(np.log(low + high), rel=1e-4, abs=1e-4)


@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")
@settings(max_examples=50)
@given(SHAPES, SHAPES, SHAPES, SHAPES, st.integers(0, 300), st.floats(0.5, 100), st.floats(1, 150))
def test_the_expectation_is_the_integral_over_the_probability_of_stopping(
    r: float, alpha: float, a: float, b: float, repeats: int, age: float, weeks: float
) -> None:
    x, age_ = np.array([float(repeats)]), np.array([age])
    found = Frequency(r, alpha, a, b).expected_purchases(x, age_, age_, weeks)
    alive = Frequency(r, alpha, a, b).alive_probability(x, age_, age_)

    def before_stopping(log_p: float) -> float:
        """Purchases of somebody who stops after each with probability p, over all rates: (1 - exp(-rate p t)) / p."""
        p = np.exp(log_p)
        purchases = -np.expm1(-(r + repeats) * np.log1p(p * weeks / (alpha + age))) / p
        return float(purchases * np.exp(a * log_p + (b + repeats - 1) * np.log1p(-p) - betaln(a, b + repeats)))

    whole = sum(
        quad(before_stopping, low, high, limit=400)[0] for low, high in ((-200, -20), (-20, -5), (-5, -1), (-1, -1e-12))
    )
    assert float((found / alive)[0]) == pytest.approx(whole, rel=2e-3, abs=1e-6)


@given(SHAPES, SHAPES, SHAPES, SHAPES)
def test_slopes_are_those_of_the_likelihoods(first: float, second: float, third: float, fourth: float) -> None:
    chance = np.random.default_rng(3)
    repeats = chance.poisson(2, 50).astype(float)
    age = chance.uniform(5, 60, 50)
    recency = np.where(repeats > 0, age * chance.uniform(0.1, 1, 50), 0)
    members = chance.integers(1, 4, 50).astype(float)
    logs = np.log([first, second, third, fourth])
    _, slope = frequency_log_likelihood(logs, repeats, recency, age, members)
    near = approx_fprime(logs, lambda x: frequency_log_likelihood(x, repeats, recency, age, members)[0], 1e-6)
    assert slope == pytest.approx(near, rel=1e-3, abs=1e-2)
    came_back, amount = repeats[repeats > 0], chance.lognormal(3, 1, int((repeats > 0).sum()))
    _, slope = value_log_likelihood(logs[:3], came_back, amount)
    near = approx_fprime(logs[:3], lambda x: value_log_likelihood(x, came_back, amount)[0], 1e-6)
    assert slope == pytest.approx(near, rel=1e-3, abs=1e-2)


def test_a_member_seen_for_no_time_says_nothing() -> None:
    zero = np.array([0.0])
    value, _ = frequency_log_likelihood(np.log([0.5, 3, 0.8, 2]), zero, zero, zero, np.array([1.0]))
    assert value == pytest.approx(0)


# ---------------------------------------------------------------------------------------------------------------------- laws
@given(SHAPES, SHAPES, SHAPES, SHAPES, st.integers(0, 400), st.floats(0, 1), st.floats(0, 200), st.floats(1, 100))
def test_predictions_stay_within_reason(
    r: float, alpha: float, a: float, b: float, repeats: int, share: float, age: float, weeks: float
) -> None:
    model = Frequency(r, alpha, a, b)
    x, t = np.array([float(repeats)]), np.array([age * share if repeats else 0.0])
    age_ = np.array([age])
    alive = float(model.alive_probability(x, t, age_)[0])
    assert 0 <= alive <= 1
    assert alive == 1 or repeats > 0
    expected = float(model.expected_purchases(x, t, age_, weeks)[0])
    rate = (r + repeats) / (alpha + age)  # of somebody who never stops
    assert 0 <= expected <= rate * weeks * (1 + 1e-6) + 1e-6
    assert expected <= float(model.expected_purchases(x, t, age_, weeks * 2)[0]) + 1e-6
    # silence makes a member less likely to be alive
    assert float(model.alive_probability(x, t, age_ + 10)[0]) <= alive


@given(st.floats(0.5, 5), st.floats(1.1, 40), st.floats(1, 5000), st.floats(1, 10_000))
def test_an_amount_lies_between_everybodys_and_ones_own(p: float, q: float, gamma: float, own: float) -> None:
    model = Value(p, q, gamma)
    everybody = float(model.expected_amount(np.array([0.0]), np.array([0.0]))[0])
    low, high = sorted([everybody, own])
    few, many = (float(model.expected_amount(np.array([n]), np.array([own]))[0]) for n in (1.0, 100.0))
    assert low - 1e-6 <= few <= high + 1e-6
    assert abs(many - own) <= abs(few - own) + 1e-6


# ------------------------------------------------------------------------------------------------- known parameters found again
def test_parameters_of_invented_members_are_found_again() -> None:
    truth, money = Frequency(0.9, 6.0, 0.8, 3.0), Value(3.0, 4.0, 60.0)
    repeats, recency, age, amount, later = simulated(truth, money, 20_000, 100, 26)
    model, likelihood = fit_frequency(repeats, recency, age)
    assert (model.r, model.alpha) == pytest.approx((truth.r, truth.alpha), rel=0.08)
    assert model.a / (model.a + model.b) == pytest.approx(truth.a / (truth.a + truth.b), rel=0.08)
    logs = np.log([truth.r, truth.alpha, truth.a, truth.b])
    assert likelihood >= frequency_log_likelihood(logs, repeats, recency, age, np.ones(len(repeats)))[0]
    assert model.expected_purchases(repeats, recency, age, 26).sum() == pytest.approx(later.sum(), rel=0.05)
    few = (repeats >= 1) & (repeats <= 3)
    assert model.expected_purchases(repeats, recency, age, 26)[few].sum() == pytest.approx(later[few].sum(), rel=0.1)
    came_back = repeats > 0
    value, _ = fit_value(repeats[came_back], amount[came_back])
    assert value.p * value.gamma / (value.q - 1) == pytest.approx(money.p * money.gamma / (money.q - 1), rel=0.05)
    assert value.p == pytest.approx(money.p, rel=0.1)


def test_a_large_a_and_one_near_one_are_no_trouble() -> None:
    x, t, age = np.array([0.0, 3, 500]), np.array([0.0, 20, 99]), np.array([50.0, 50, 100])
    near = [Frequency(0.5, 5, a, 2).expected_purchases(x, t, age, 26) for a in (0.999_999, 1.0, 1.000_001)]
    assert near[0] == pytest.approx(near[1], rel=1e-3)
    assert near[2] == pytest.approx(near[1], rel=1e-3)
    # nobody stops: what is left is the gamma-Poisson model
    never = Frequency(0.5, 5, 1e-4, 1e4).expected_purchases(x, t, age, 26)
    assert never == pytest.approx((0.5 + x) / (5 + age) * 26, rel=1e-3)


def test_amounts_without_a_mean_are_no_model() -> None:
    amounts = 1 / np.random.default_rng(1).gamma(0.4, 1, 2000)
    with pytest.raises(NoFitError, match="too widely"):
        fit_value(np.ones(2000), amounts)


@given(st.dates(date(2000, 1, 1), date(2100, 1, 1)))
def test_a_week_has_one_sunday(day: date) -> None:
    sunday = sunday_of(day)
    assert sunday.isoweekday() == 7
    assert 0 <= (day - sunday).days <= 6
