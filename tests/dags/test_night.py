"""Which business date a run takes, what the form refuses, what is tried again."""

from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import RetryAction

from nightmarket.campaigns.audience import RunRefused
from nightmarket.campaigns.results import LawBroken
from nightmarket.orchestration.defaults import RetryByKind
from nightmarket.orchestration.form import campaign_form, check_form, person_of
from nightmarket.orchestration.night import business_date_of, choose_business_date
from nightmarket.orchestration.tables import text_table
from nightmarket.platforms.base import AuthError, BadPayload, PlatformDown, RateLimited
from nightmarket.quality import GateFailed
from nightmarket.settings import ConfigError


@pytest.fixture(autouse=True)
def early_on_the_fifteenth(set_clock: Any) -> None:
    set_clock("2026-03-15T02:30:00+08:00")


class TestBusinessDate:
    def test_the_form_wins(self) -> None:
        assert choose_business_date("2026-02-28", [{"business_date": "2026-03-14"}]) == (date(2026, 2, 28), [])

    def test_then_the_newest_event_and_the_missed_nights_are_named(self) -> None:
        extras = [{"business_date": "2026-03-14"}, {"business_date": "2026-03-12"}, {"business_date": "2026-03-14"}, {}]
        assert choose_business_date(None, extras) == (date(2026, 3, 14), [date(2026, 3, 12)])

    def test_then_yesterday_in_shanghai(self) -> None:
        assert choose_business_date(None) == (date(2026, 3, 14), [])
        assert choose_business_date("") == (date(2026, 3, 14), [])

    def test_a_scheduled_run_that_starts_late_is_for_its_own_night(self) -> None:
        two_o_clock = datetime(2026, 3, 13, 18, 0, tzinfo=UTC)  # 02:00 on the 14th in Shanghai
        assert choose_business_date(None, run_type="scheduled", logical_date=two_o_clock)[0] == date(2026, 3, 13)

    def test_a_manual_run_with_a_logical_date_is_for_yesterday(self) -> None:
        form_default = datetime(2026, 1, 1, tzinfo=UTC)
        assert choose_business_date(None, run_type="manual", logical_date=form_default)[0] == date(2026, 3, 14)

    def test_a_moved_clock_moves_the_schedule_but_not_a_backfill(self) -> None:
        night, moved = datetime(2026, 3, 13, 18, 0, tzinfo=UTC), timedelta(days=10)
        scheduled = choose_business_date(None, run_type="scheduled", logical_date=night, clock_moved=moved)
        backfill = choose_business_date(None, run_type="backfill", logical_date=night, clock_moved=moved)
        assert (scheduled[0], backfill[0]) == (date(2026, 3, 23), date(2026, 3, 13))

    @pytest.mark.parametrize("text", ["2026-03-16", "2026-02-30", "yesterday"])
    def test_a_date_that_cannot_be_is_refused_in_a_sentence(self, text: str) -> None:
        with pytest.raises(ValueError, match=text):
            choose_business_date(text)

    def test_an_asset_run_without_logical_date_takes_the_events_date(self) -> None:
        run = SimpleNamespace(conf={}, run_type="asset_triggered", logical_date=None, dag_id="build_marts")
        events = {
            "core.own_pages": [SimpleNamespace(extra={"business_date": "2026-03-13"}), SimpleNamespace(extra=None)]
        }
        context = {
            "dag_run": run,
            "dag": SimpleNamespace(params={"business_date": None}),
            "params": {"business_date": None},
            "triggering_asset_events": events,
        }
        assert business_date_of(context) == date(2026, 3, 13)

    def test_a_misspelt_field_is_refused_also_when_airflow_has_merged_it_into_the_params(self) -> None:
        run = SimpleNamespace(
            conf={"bussiness_date": "2026-03-01"}, run_type="manual", logical_date=None, dag_id="build_marts"
        )
        context = {
            "dag_run": run,
            "dag": SimpleNamespace(params={"business_date": None}),
            "params": {"business_date": None, "bussiness_date": "2026-03-01"},
        }
        with pytest.raises(ValueError, match="no field 'bussiness_date'; its fields are business_date"):
            business_date_of(context)


class TestForm:
    def test_a_misspelt_dry_run_starts_nothing(self) -> None:
        with pytest.raises(
            ValueError, match=r"no field 'dryrun'; its fields are as_of, campaign, dry_run, .*Nothing was done"
        ):
            check_form({"campaign": "x", "dryrun": False}, campaign_form())

    def test_what_the_form_has_is_accepted(self) -> None:
        check_form({"campaign": "x", "dry_run": False, "test_recipients": ["1"]}, campaign_form())
        check_form(None, campaign_form())

    def test_dry_run_is_on_unless_somebody_switches_it_off(self) -> None:
        assert campaign_form()["dry_run"].value is True

    def test_nothing_is_folded_away(self) -> None:
        assert all("section" not in param.schema for param in campaign_form().values())

    def test_the_list_of_campaigns_is_the_one_the_runs_know(self, environment: str) -> None:
        from nightmarket.campaigns.config import list_campaigns

        assert campaign_form()["campaign"].schema["enum"] == list_campaigns() != []

    def test_who_started_a_run(self) -> None:
        assert person_of(SimpleNamespace(triggering_user_name="vera", run_type="manual")) == "vera"
        assert person_of(SimpleNamespace(triggering_user_name=None, run_type="scheduled")) == "airflow (scheduled)"


class TestRetries:
    def decide(self, error: Exception) -> tuple[RetryAction, timedelta | None]:
        decision = RetryByKind().evaluate(error, 1, 3)
        return decision.action, decision.retry_delay

    def test_a_rate_limit_waits_as_long_as_the_platform_asks(self) -> None:
        error = RateLimited("taobao", "taobao.trades.sold.get", "call limit", retry_after=45)
        assert self.decide(error) == (RetryAction.RETRY, timedelta(seconds=45))
        assert self.decide(RateLimited("taobao"))[1] == timedelta(seconds=30)

    @pytest.mark.parametrize(
        "error",
        [AuthError("taobao"), ConfigError("x"), ValueError("x"), RunRefused("x"), GateFailed("x"), LawBroken("x")],
    )
    def test_what_needs_a_person_is_not_repeated(self, error: Exception) -> None:
        assert self.decide(error)[0] is RetryAction.FAIL

    @pytest.mark.parametrize("error", [PlatformDown("taobao"), BadPayload("taobao"), ConnectionError()])
    def test_what_may_be_well_again_is_tried_again(self, error: Exception) -> None:
        assert self.decide(error)[0] is RetryAction.DEFAULT


def test_tables_in_logs_are_aligned() -> None:
    rows = [{"stream": "trades", "seen": 18532}, {"stream": "traderates", "seen": 7}]
    assert text_table(rows).splitlines() == [
        "stream        seen",
        "----------  ------",
        "trades      18,532",
        "traderates       7",
    ]
    assert text_table(rows, ["seen", "stream"]).splitlines()[2] == "18,532  trades"
    assert text_table([]) == "(nothing)"
