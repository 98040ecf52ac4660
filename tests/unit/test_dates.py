"""Days, windows and send windows, at their edges."""

import itertools
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmarket import dates
from nightmarket.dates import DEFAULT_ZONE, Window

instants = st.datetimes(datetime(2015, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds are naive
days = st.dates(date(2015, 1, 1), date(2035, 1, 1))
clock_times = st.times().map(lambda value: value.replace(microsecond=0))


@given(days)
def test_a_day_holds_its_instants_and_ends_where_the_next_begins(day: date) -> None:
    assert dates.day_end(day) == dates.day_start(day + timedelta(days=1))
    assert dates.day_start(day).astimezone(DEFAULT_ZONE).date() == day
    assert (dates.day_end(day) - timedelta(microseconds=1)).astimezone(DEFAULT_ZONE).date() == day


@pytest.mark.parametrize("day", [date(2024, 2, 29), date(2023, 12, 31), date(2024, 1, 1), date(2026, 2, 28)])
def test_leap_days_and_year_ends(day: date) -> None:
    assert dates.day_end(day) - dates.day_start(day) == timedelta(hours=24)


def test_a_day_with_summer_time_is_not_24_hours_long() -> None:
    london = ZoneInfo("Europe/London")
    start, end = (
        moment.astimezone(UTC)
        for moment in (dates.day_start(date(2026, 3, 29), london), dates.day_end(date(2026, 3, 29), london))
    )
    assert end - start == timedelta(hours=23)


@given(
    instants, st.timedeltas(timedelta(0), timedelta(days=800)), st.timedeltas(timedelta(minutes=1), timedelta(days=90))
)
def test_windows_cover_a_stretch_without_gap_or_overlap(start: datetime, length: timedelta, size: timedelta) -> None:
    size = max(size, length / 500)
    found = list(dates.windows(start, start + length, size))
    if not length:
        assert found == []
        return
    assert found[0].start == start
    assert found[-1].end == start + length
    assert all(window.end - window.start <= size for window in found)
    assert all(before.end == after.start for before, after in itertools.pairwise(found))


def test_a_backward_stretch_has_no_windows_and_is_no_window() -> None:
    now = datetime(2026, 3, 15, tzinfo=UTC)
    assert list(dates.windows(now, now - timedelta(days=1), timedelta(days=1))) == []
    with pytest.raises(ValueError, match="before it starts"):
        Window(now, now - timedelta(seconds=1))


@given(instants, st.timedeltas(timedelta(microseconds=2), timedelta(days=400)))
def test_a_split_window_is_the_window(start: datetime, length: timedelta) -> None:
    window = Window(start, start + length)
    first, second = window.split()
    assert (first.start, first.end, second.end) == (window.start, second.start, window.end)
    assert abs((first.end - first.start) - (second.end - second.start)) <= timedelta(microseconds=1)


@given(instants, clock_times, clock_times)
def test_sending_waits_for_the_window_and_never_goes_back(moment: datetime, opens: time, closes: time) -> None:
    allowed = dates.send_window(moment, opens, closes)
    assert allowed >= moment
    assert allowed - moment < timedelta(hours=24)
    clock = allowed.astimezone(DEFAULT_ZONE).time()
    if opens < closes:
        assert opens <= clock < closes
    elif opens > closes:
        assert clock >= opens or clock < closes
    else:
        assert allowed == moment
    assert dates.send_window(allowed, opens, closes) == allowed


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        ("2026-03-15 08:59:59", "2026-03-15 09:00:00"),
        ("2026-03-15 09:00:00", "2026-03-15 09:00:00"),
        ("2026-03-15 20:59:59", "2026-03-15 20:59:59"),
        ("2026-03-15 21:00:00", "2026-03-16 09:00:00"),
        ("2026-12-31 23:30:00", "2027-01-01 09:00:00"),
        ("2028-02-28 22:00:00", "2028-02-29 09:00:00"),
    ],
)
def test_the_edges_of_a_send_window(local: str, expected: str) -> None:
    moment = datetime.fromisoformat(local).replace(tzinfo=DEFAULT_ZONE)
    assert dates.send_window(moment, time(9), time(21)) == datetime.fromisoformat(expected).replace(tzinfo=DEFAULT_ZONE)


def test_the_business_date_is_yesterday_on_the_clock_of_the_zone(set_clock) -> None:  # type: ignore[no-untyped-def]
    set_clock("2026-03-15T00:00:30+08:00")
    assert dates.today() == date(2026, 3, 15)
    assert dates.business_date() == date(2026, 3, 14)
    assert dates.business_date("") == date(2026, 3, 14)
    set_clock("2026-03-14T23:59:30+08:00")
    assert dates.business_date() == date(2026, 3, 13)


@pytest.mark.parametrize(
    ("text", "words"), [("14.3.2026", "YYYY-MM-DD"), ("2026-02-30", "YYYY-MM-DD"), ("2026-03-16", "in the future")]
)
def test_a_business_date_nobody_can_run_is_refused_in_a_sentence(set_clock, text: str, words: str) -> None:  # type: ignore[no-untyped-def]
    set_clock("2026-03-15T10:00:00+08:00")
    with pytest.raises(ValueError, match=words):
        dates.business_date(text)


def test_the_clock_is_the_machines_when_no_file_moves_it(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.delenv("NIGHTMARKET_CLOCK_FILE", raising=False)
    real = datetime.now(UTC)  # noqa: TID251 - what it is compared with
    assert abs(dates.now() - real) < timedelta(seconds=5)
    monkeypatch.setenv("NIGHTMARKET_CLOCK_FILE", str(tmp_path / "absent"))
    assert abs(dates.now() - real) < timedelta(seconds=5)
    (tmp_path / "clock").write_text("3600\n")
    monkeypatch.setenv("NIGHTMARKET_CLOCK_FILE", str(tmp_path / "clock"))
    assert timedelta(minutes=59) < dates.now() - real < timedelta(minutes=61)
