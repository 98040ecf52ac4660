"""What members are expected to buy: BG/NBD for how often, Gamma-Gamma for how much (docs/decisions/0070-predictions.md).

How often, after Fader, Hardie and Lee (2005), "Counting your customers the easy way": while alive, a member buys like a
Poisson process with a rate of their own, and after each purchase stops for ever with a probability of their own; rates are
Gamma(r, alpha) over the members, probabilities Beta(a, b). How much, after Fader and Hardie (2013), "The Gamma-Gamma model
of monetary value": amounts of a member spread around a mean of their own, means spread over the members. Both have closed
likelihoods, so a fit is a maximisation over four and over three numbers, and a prediction is a formula.

A purchase is a day with paid orders, the first one is not counted, time is in weeks (the way in which the CDNOW data, on
which both papers show their figures, are counted; docs/metrics.md). The model of a week sees what happened up to its Sunday.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import psycopg
from psycopg.rows import tuple_row
from scipy.optimize import OptimizeResult, minimize
from scipy.special import expit, gammaln, hyp2f1, psi

from nightmarket.marts import PredictionSettings, load_kpis
from nightmarket.warehouse import Row, connect, copy_lines, read_sql, split_statements

Numbers = np.ndarray[Any, np.dtype[np.float64]]

WEEK = 7.0  # days
# Where parameters are searched, as logarithms. Beyond 100 the members are all alike for every use, and the formulas lose digits.
SMALL, ALIKE, LARGE = np.log([1e-4, 100, 1e4])
FREQUENCY_BOUNDS = [(SMALL, ALIKE), (SMALL, LARGE), (SMALL, ALIKE), (SMALL, LARGE)]
VALUE_BOUNDS = [(SMALL, LARGE)] * 3
PIECE = 50_000  # members in memory as rows at one time
MIN_TRIAL_DAYS = 28  # a trial over less says nothing


class NoFitError(Exception):
    """The data give no model; one sentence that says why."""


# ----------------------------------------------------------------------------------------------------- how often: BG/NBD
@dataclass(frozen=True)
class Frequency:
    """BG/NBD: rates of purchases per week are Gamma(r, alpha), probabilities of stopping after one Beta(a, b)."""

    r: float
    alpha: float
    a: float
    b: float

    def alive_probability(self, repeats: Numbers, recency: Numbers, age: Numbers) -> Numbers:
        """That a member with `repeats` purchases after the first, the last one `recency` weeks after it, still buys now,
        `age` weeks after it. Nobody can have stopped who has not come back: the model's own simplification."""
        came_back = repeats > 0
        silence = (self.r + repeats) * (np.log(self.alpha + age) - np.log(self.alpha + recency))
        log_odds = np.log(self.a) - np.log(np.where(came_back, self.b + repeats - 1, 1)) + silence
        return np.where(came_back, expit(-log_odds), 1.0)

    def expected_purchases(self, repeats: Numbers, recency: Numbers, age: Numbers, weeks: float) -> Numbers:
        """How often a member buys in the next `weeks` weeks (equation 10 of the paper).

        Its hypergeometric function grows beyond all numbers for who bought hundreds of times; after Euler's transformation
        it stays near 1, and the powers beside it cancel.
        """
        a = _off(self.a, 1)  # where the formula is 0 / 0, and smooth
        total = _off(a + self.b + repeats, 1)
        z = weeks / (self.alpha + age + weeks)
        rest = (1 - z) ** (a - 1) * _hypergeometric(total - 1 - self.r - repeats, a - 1, total - 1, z)
        number = (total - 1) / (a - 1) * (1 - rest)
        return np.maximum(number * self.alive_probability(repeats, recency, age), 0)


def _off(value: Any, pole: float) -> Any:
    """`value`, or the nearest one a millionth away from `pole`."""
    return np.where(np.abs(value - pole) < 1e-6, pole + 1e-6, value)


def _hypergeometric(a: Any, b: Any, c: Any, z: Any) -> Any:
    """2F1 by scipy; where that gives up, which is for large c and z near 1, the series has few terms that count."""
    value = hyp2f1(a, b, c, z)
    lost = ~np.isfinite(value)
    if lost.any():
        term = total = np.where(lost, 1.0, 0.0)
        for n in range(500):
            term = term * ((a + n) * (b + n) / ((c + n) * (n + 1)) * z)
            total = total + term
        value = np.where(lost, total, value)
    return value


def frequency_log_likelihood(
    logs: Numbers, repeats: Numbers, recency: Numbers, age: Numbers, members: Numbers
) -> tuple[float, Numbers]:
    """Log-likelihood of `members` members each with these figures (equation 6), and its slope; `logs` are those of r,
    alpha, a and b."""
    r, alpha, a, b = np.exp(logs)
    came_back = repeats > 0
    after = np.where(came_back, b + repeats - 1, 1)
    age_log, recency_log = np.log(alpha + age), np.log(alpha + recency)
    alive = -(r + repeats) * age_log
    stopped = np.where(came_back, np.log(a) - np.log(after) - (r + repeats) * recency_log, -np.inf)
    both = np.logaddexp(alive, stopped)
    w = np.exp(stopped - both)  # how likely it is that they stopped
    counts, of_count = _counted(repeats, members)
    total = float(of_count.sum())
    value = (
        of_count @ (gammaln(r + counts) + gammaln(b + counts) - gammaln(a + b + counts))
        + total * (r * np.log(alpha) - gammaln(r) + gammaln(a + b) - gammaln(b))
        + members @ both
    )
    slope_r = (
        of_count @ psi(r + counts) + total * (np.log(alpha) - psi(r)) - members @ ((1 - w) * age_log + w * recency_log)
    )
    slope_alpha = total * r / alpha - members @ ((r + repeats) * ((1 - w) / (alpha + age) + w / (alpha + recency)))
    slope_a = total * psi(a + b) - of_count @ psi(a + b + counts) + members @ w / a
    slope_b = (
        total * (psi(a + b) - psi(b)) + of_count @ (psi(b + counts) - psi(a + b + counts))
        - members @ np.where(came_back, w / after, 0)
    )  # fmt: skip
    return float(value), np.array([slope_r * r, slope_alpha * alpha, slope_a * a, slope_b * b])


def fit_frequency(repeats: Numbers, recency: Numbers, age: Numbers) -> tuple[Frequency, float]:
    """The most likely model of members with these figures (weeks), and its log-likelihood.

    The same members in any order give the same model. Raises NoFitError.
    """
    order = np.lexsort((age, recency, repeats))
    columns = np.stack([repeats, recency, age])[:, order]
    starts = np.flatnonzero(np.append(True, (np.diff(columns) != 0).any(axis=0)))
    members = np.diff(starts, append=len(repeats)).astype(float)
    found = _maximise(
        frequency_log_likelihood,
        np.array([0.0, 1.0, 0.0, 1.0]),
        FREQUENCY_BOUNDS,
        (*columns[:, starts], members),
        len(repeats),
    )
    # at the other limits members are all alike, or nobody stops: those are models
    if found.x[0] <= SMALL:
        raise NoFitError("the members' rhythms do not spread like a gamma distribution")
    return Frequency(*_rounded(np.exp(found.x))), -float(found.fun) * len(repeats)


# ------------------------------------------------------------------------------------------------- how much: Gamma-Gamma
@dataclass(frozen=True)
class Value:
    """Gamma-Gamma: amounts of a member are Gamma(p, v), and v is Gamma(q, gamma) over the members."""

    p: float
    q: float
    gamma: float

    def expected_amount(self, repeats: Numbers, mean_amount: Numbers) -> Numbers:
        """A member's own mean, from that of `repeats` purchases, drawn the more towards everybody's the fewer they are."""
        return (self.gamma + repeats * mean_amount) * self.p / (self.p * repeats + self.q - 1)


def value_log_likelihood(logs: Numbers, repeats: Numbers, mean_amount: Numbers) -> tuple[float, Numbers]:
    """Log-likelihood of mean amounts over `repeats` purchases each, and its slope; `logs` are those of p, q and gamma."""
    p, q, gamma = np.exp(logs)
    counts, of_count = _counted(repeats, np.ones_like(repeats))
    total, amount_log = float(len(repeats)), np.log(mean_amount)
    sum_log = np.log(gamma + repeats * mean_amount)
    value = (
        of_count @ (gammaln(p * counts + q) - gammaln(p * counts) + p * counts * np.log(counts))
        + total * (q * np.log(gamma) - gammaln(q))
        + (p * repeats - 1) @ amount_log
        - (p * repeats + q) @ sum_log
    )
    slope_p = (of_count * counts) @ (psi(p * counts + q) - psi(p * counts) + np.log(counts)) + repeats @ (
        amount_log - sum_log
    )
    slope_q = of_count @ psi(p * counts + q) + total * (np.log(gamma) - psi(q)) - sum_log.sum()
    slope_gamma = total * q / gamma - ((p * repeats + q) / (gamma + repeats * mean_amount)).sum()
    return float(value), np.array([slope_p * p, slope_q * q, slope_gamma * gamma])


def fit_value(repeats: Numbers, mean_amount: Numbers) -> tuple[Value, float]:
    """The most likely model of members who came back and paid something, and its log-likelihood. Raises NoFitError."""
    order = np.lexsort((mean_amount, repeats))  # sums of floating-point numbers depend on the order
    unit = float(np.median(mean_amount))  # the search is better behaved near 1
    repeats, scaled = repeats[order], mean_amount[order] / unit
    found = _maximise(value_log_likelihood, np.array([0.0, 1.0, 0.0]), VALUE_BOUNDS, (repeats, scaled), len(repeats))
    p, q, gamma = np.exp(found.x)
    if q <= 1:
        raise NoFitError("the members' amounts spread too widely to have a mean")
    return Value(*_rounded(np.array([p, q, gamma * unit]))), -float(found.fun) * len(repeats) - len(repeats) * float(
        np.log(unit)
    )


def _counted(repeats: Numbers, members: Numbers) -> tuple[Numbers, Numbers]:
    """Which numbers of repeats there are, and of how many members: few, and gamma functions are the dear part."""
    of_count = np.bincount(repeats.astype(int), members)
    counts = np.flatnonzero(of_count)
    return counts.astype(float), of_count[counts].astype(float)


def _maximise(
    likelihood: Any, start: Numbers, bounds: list[tuple[float, float]], data: tuple[Numbers, ...], size: int
) -> OptimizeResult:
    def loss(logs: Numbers) -> tuple[float, Numbers]:
        value, slope = likelihood(logs, *data)
        return -value / size, -slope / size

    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": 1000, "maxfun": 5000, "ftol": 1e-13, "gtol": 1e-8},
    )  # fmt: skip
    inside = [low < x < high for x, (low, high) in zip(found.x, bounds, strict=True)]
    if not np.isfinite(found.fun) or np.abs(found.jac[inside]).max(initial=0) > 1e-3:
        raise NoFitError(f"the search for the parameters does not end: {found.message}")
    return found


def _rounded(values: Numbers) -> list[float]:
    """Six digits: more than the data know, and the same on another processor."""
    return [float(f"{value:.6g}") for value in values]


# --------------------------------------------------------------------------------------------------------- a week's model
@dataclass(frozen=True)
class Behaviour:
    """Figures of many members, in weeks where they are of time."""

    repeats: Numbers
    recency: Numbers
    age: Numbers
    repeat_amount: Numbers  # mean of an order day after the first; 0 without one
    later: Numbers  # order days after what the model sees

    @classmethod
    def read(
        cls, connection: psycopg.Connection[Row], model_date: date, until_date: date, sample_every: int
    ) -> "Behaviour":
        query = {"model_date": model_date, "until_date": until_date, "sample_every": sample_every}
        pieces = [
            np.array(piece, dtype=float)[:, 1:] for piece in _stream(connection, "predictions/behaviour.sql", query)
        ]
        repeats, recency, age, amount, later = np.concatenate(pieces).T if pieces else np.empty((5, 0))
        return cls(repeats, recency / WEEK, age / WEEK, amount, later)

    @property
    def paying(self) -> Any:
        """Who came back and paid something: the others say nothing about amounts."""
        return (self.repeats > 0) & (self.repeat_amount > 0)


def sunday_of(day: date) -> date:
    """The last Sunday up to a day: the week's model has seen what happened up to its end."""
    return day - timedelta(days=day.isoweekday() % 7)


def fit_week(connection: psycopg.Connection[Row], model_date: date, settings: PredictionSettings) -> Row:
    """A row of mart.prediction_fits: the model of order days up to `model_date`, or in words why there is none.

    Above `fit_members` it looks at every second member, every third ...: parameters hardly move, and memory is bounded.
    """
    count = connection.execute(
        "SELECT count(DISTINCT d.member_id) AS members FROM mart.member_days AS d WHERE d.order_count > 0 AND d.day <= %s",
        (model_date,),
    ).fetchone()
    assert count is not None
    every = max(-(-count["members"] // settings.fit_members), 1)
    seen = Behaviour.read(connection, model_date, model_date, every)
    members, repeaters = len(seen.repeats), int((seen.repeats > 0).sum())
    row: Row = {
        "business_date": model_date, "is_usable": False, "sample_every": every, "member_count": members, "repeater_count": repeaters,
    }  # fmt: skip
    if repeaters < settings.min_repeaters:
        return row | {
            "reason": f"{repeaters:,} members came back, {settings.min_repeaters:,} are needed to see a pattern"
        }
    try:
        frequency, likelihood = fit_frequency(seen.repeats, seen.recency, seen.age)
        row |= {
            f"{'dropout' if name in 'ab' else 'frequency'}_{name}": value for name, value in asdict(frequency).items()
        }
        row["frequency_log_likelihood"] = round(likelihood, 4)
        value, likelihood = fit_value(seen.repeats[seen.paying], seen.repeat_amount[seen.paying])
        row |= {f"value_{name}": value for name, value in asdict(value).items()} | {
            "value_log_likelihood": round(likelihood, 4)
        }
        correlation = np.corrcoef(seen.repeats[seen.paying], seen.repeat_amount[seen.paying])[0, 1]
        row["value_correlation"] = round(float(correlation), 4)
        row |= trial(connection, model_date, every, int(seen.age.max() * WEEK), settings)
    except NoFitError as error:
        return row | {"reason": str(error)}
    looked_at = f"{members:,} members" if every == 1 else f"{members:,} members, one in {every} of all,"
    words = [f"{repeaters:,} of {looked_at} came back"]
    if frequency.a < 0.01:
        words.append("hardly anybody is seen to have stopped")
    error_rate = row.get("holdout_error_rate")
    if error_rate is None:
        words.append("the history is too short for a trial")
    else:
        words.append(
            f"a model that had seen the days up to {row['holdout_from']} expected {row['holdout_expected_count']:,.0f} order days"
            f" after them, there were {row['holdout_actual_count']:,} ({error_rate:+.1%})"
        )
        if not abs(error_rate) <= settings.max_error_rate:
            return row | {
                "reason": "; ".join([*words, f"more than {settings.max_error_rate:.0%} off: nothing is predicted"])
            }
    return row | {"is_usable": True, "reason": "; ".join(words)}


def trial(
    connection: psycopg.Connection[Row], model_date: date, every: int, age_days: int, settings: PredictionSettings
) -> Row:
    """Fit on the first part of the history and compare what that model expects with what the last part brought.

    The last part is a third of the history, at most the days that are predicted. Empty when that is too short.
    """
    days = min(settings.horizon_days, age_days // 3)
    if days < MIN_TRIAL_DAYS:
        return {}
    seen = Behaviour.read(connection, model_date - timedelta(days=days), model_date, every)
    if int((seen.repeats > 0).sum()) < settings.min_repeaters:
        return {}
    frequency, _ = fit_frequency(seen.repeats, seen.recency, seen.age)
    expected = float(frequency.expected_purchases(seen.repeats, seen.recency, seen.age, days / WEEK).sum())
    actual = int(seen.later.sum())
    return {
        "holdout_from": model_date - timedelta(days=days),
        "holdout_expected_count": round(expected, 1),
        "holdout_actual_count": actual,
        "holdout_error_rate": round(expected / actual - 1, 4) if actual else None,
    }


# ------------------------------------------------------------------------------------------------------------- the night
@dataclass(frozen=True)
class Summary:
    """What a night did."""

    model_date: date
    is_usable: bool
    reason: str
    looked_at: int
    written: int
    deleted: int

    def __str__(self) -> str:
        done = (
            f"{self.looked_at:,} members looked at, {self.written:,} predictions written, {self.deleted:,} taken away"
        )
        return f"model of {self.model_date}: {self.reason}. {done if self.is_usable else 'Nothing is predicted'}."


WRITE = """
INSERT INTO mart.member_predictions (
    member_id, as_of_date, horizon_days, repeat_count, alive_probability, expected_order_count, expected_order_amount, expected_amount
)
SELECT
    p.member_id, p.as_of_date, p.horizon_days, p.repeat_count, p.alive_probability, p.expected_order_count, p.expected_order_amount,
    p.expected_amount
FROM predicted AS p
ORDER BY p.member_id ASC
ON CONFLICT (member_id) DO UPDATE SET
    as_of_date = excluded.as_of_date, horizon_days = excluded.horizon_days, repeat_count = excluded.repeat_count,
    alive_probability = excluded.alive_probability, expected_order_count = excluded.expected_order_count,
    expected_order_amount = excluded.expected_order_amount, expected_amount = excluded.expected_amount
WHERE
    (
        member_predictions.as_of_date, member_predictions.horizon_days, member_predictions.repeat_count,
        member_predictions.alive_probability, member_predictions.expected_order_count, member_predictions.expected_order_amount,
        member_predictions.expected_amount
    )
    IS DISTINCT FROM (
        excluded.as_of_date, excluded.horizon_days, excluded.repeat_count, excluded.alive_probability, excluded.expected_order_count,
        excluded.expected_order_amount, excluded.expected_amount
    )
"""
MARK = """
INSERT INTO mart.marks (mart, business_date, batch_id, settings)
VALUES ('member_predictions', %(horizon)s, %(batch_id)s, %(settings)s)
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = greatest(marks.batch_id, excluded.batch_id), settings = excluded.settings,
    computed_at = clock_timestamp()
WHERE
    (marks.business_date, marks.batch_id, marks.settings)
    IS DISTINCT FROM (excluded.business_date, greatest(marks.batch_id, excluded.batch_id), excluded.settings)
"""
COLUMNS = (
    "member_id", "as_of_date", "horizon_days", "repeat_count", "alive_probability", "expected_order_count", "expected_order_amount",
    "expected_amount",
)  # fmt: skip


def predict_values(business_date: date | str) -> Summary:
    """Bring mart.prediction_fits and mart.member_predictions to a business date, after mart.member_days; one transaction.

    Everybody is looked at from the Sunday of the week's model, who ordered since from the last order day: so a night computes
    those who ordered or were touched, and everybody in the night of a Sunday, or when there is no mark. A Sunday that is run
    again is fitted again; on other days the week's model is taken as it is. A run for an older date takes nothing back.
    Data that give no model are no failure: the reason is in mart.prediction_fits, and nothing is predicted.
    """
    day = date.fromisoformat(business_date) if isinstance(business_date, str) else business_date
    settings = load_kpis().predictions
    with connect(application_name="nightmarket-predictions") as connection:
        mark = connection.execute(
            "SELECT m.business_date, m.batch_id, m.settings, coalesce((SELECT max(t.batch_id) FROM mart.touched_members AS t), 0) AS newest"
            " FROM (SELECT 1) AS one LEFT JOIN mart.marks AS m ON m.mart = 'member_predictions'"
        ).fetchone()
        assert mark is not None
        horizon = max(day, mark["business_date"] or day)
        fit = week_fit(connection, sunday_of(horizon), settings, again=sunday_of(horizon) == day)
        told = f"{settings.horizon_days} days, {fit['business_date']}, " + ", ".join(
            f"{fit[name]:.6g}" if fit["is_usable"] else "none" for name in PARAMETERS
        )
        query = {
            "model_date": fit["business_date"],
            "horizon": horizon,
            "since": mark["business_date"],
            "after_batch_id": mark["batch_id"] or 0,
            "is_full": mark["settings"] != told,
        }
        looked_at, written, deleted = write_predictions(connection, fit, query, settings)
        connection.execute(
            MARK, {"horizon": horizon, "batch_id": max(mark["newest"], mark["batch_id"] or 0), "settings": told}
        )
    return Summary(fit["business_date"], fit["is_usable"], fit["reason"], looked_at, written, deleted)


PARAMETERS = ("frequency_r", "frequency_alpha", "dropout_a", "dropout_b", "value_p", "value_q", "value_gamma")
FITTED = (
    "is_usable", "reason", "sample_every", "member_count", "repeater_count", *PARAMETERS, "frequency_log_likelihood", "value_log_likelihood",
    "value_correlation", "holdout_from", "holdout_expected_count", "holdout_actual_count", "holdout_error_rate",
)  # fmt: skip


def week_fit(
    connection: psycopg.Connection[Row], model_date: date, settings: PredictionSettings, *, again: bool
) -> Row:
    """The model of a Sunday from mart.prediction_fits; made and kept when it is not there, or `again`."""
    kept = connection.execute(
        "SELECT * FROM mart.prediction_fits AS f WHERE f.business_date = %s", (model_date,)
    ).fetchone()
    if kept and not again:
        return kept
    fit = dict.fromkeys(FITTED) | fit_week(connection, model_date, settings)
    listed, changes = ", ".join(FITTED), ", ".join(f"{name} = excluded.{name}" for name in FITTED)
    old, new = (", ".join(f"{place}.{name}" for name in FITTED) for place in ("prediction_fits", "excluded"))
    connection.execute(
        f"INSERT INTO mart.prediction_fits (business_date, {listed})"
        f" VALUES (%(business_date)s, {', '.join(f'%({name})s' for name in FITTED)})"
        f" ON CONFLICT (business_date) DO UPDATE SET {changes} WHERE ({old}) IS DISTINCT FROM ({new})",
        fit,
    )
    return fit


def write_predictions(
    connection: psycopg.Connection[Row], fit: Row, query: Mapping[str, Any], settings: PredictionSettings
) -> tuple[int, int, int]:
    """Predict for the members of pending.sql and bring their rows to it: (looked at, written, deleted)."""
    if not fit["is_usable"]:
        return 0, 0, connection.execute("DELETE FROM mart.member_predictions").rowcount
    frequency = Frequency(fit["frequency_r"], fit["frequency_alpha"], fit["dropout_a"], fit["dropout_b"])
    value = Value(fit["value_p"], fit["value_q"], fit["value_gamma"])
    connection.execute("DROP TABLE IF EXISTS pg_temp.predicted")
    connection.execute("CREATE TEMPORARY TABLE predicted (LIKE mart.member_predictions) ON COMMIT DROP")
    looked_at = 0
    for piece in _stream(connection, "predictions/pending.sql", query):
        member, repeats, recency, age, amount, after = np.array(
            piece, dtype=float
        ).T  # member ids stay exact up to 2^53
        recency, age = recency / WEEK, age / WEEK
        alive = frequency.alive_probability(repeats, recency, age)
        orders = frequency.expected_purchases(repeats, recency, age, settings.horizon_days / WEEK)
        each = value.expected_amount(repeats, amount)
        as_of = np.datetime64(fit["business_date"]) + after.astype(int)
        lines = [
            b"%d\t%s\t%d\t%d\t%.4f\t%.4f\t%.2f\t%.2f" % row
            for row in zip(
                member.astype(int).tolist(), as_of.astype("S10").tolist(), [settings.horizon_days] * len(member), repeats.astype(int).tolist(),
                alive.tolist(), orders.tolist(), each.tolist(), (orders * each).tolist(), strict=True,
            )
        ]  # fmt: skip
        copy_lines(connection, "predicted", COLUMNS, lines)
        looked_at += len(lines)
    connection.execute("CREATE UNIQUE INDEX ON predicted (member_id)")
    connection.execute("ANALYZE predicted")
    deleted = connection.execute(
        "DELETE FROM mart.member_predictions AS m"
        " WHERE (%s OR EXISTS (SELECT FROM scope AS s WHERE s.member_id = m.member_id))"
        " AND NOT EXISTS (SELECT FROM predicted AS p WHERE p.member_id = m.member_id)",
        (query["is_full"],),
    ).rowcount
    return looked_at, connection.execute(WRITE).rowcount, deleted


def _stream(
    connection: psycopg.Connection[Row], name: str, parameters: Mapping[str, Any]
) -> Iterator[list[tuple[Any, ...]]]:
    """Rows of the last statement of include/sql/<name>, in pieces: a million members do not fit as rows of Python."""
    *before, query = split_statements(read_sql(name))
    for statement in before:
        connection.execute(statement, parameters)  # type: ignore[arg-type]
    with connection.cursor("pieces", row_factory=tuple_row) as cursor:
        cursor.execute(query, parameters)  # type: ignore[arg-type]
        while piece := cursor.fetchmany(PIECE):
            yield piece
