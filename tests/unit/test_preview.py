"""A preview shows what a member would get, with the name masked; lengths are those of the message."""

from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from campaign_world import AS_OF, MORNING, People
from nightmarket.campaigns.preview import all_lengths, preview_member
from nightmarket.cli import app
from nightmarket.warehouse import Row


@pytest.fixture
def people(db: psycopg.Connection[Row], set_clock: Any) -> People:
    set_clock(MORNING)
    return People(db)


def test_a_member_sees_their_own_language_and_a_masked_name(people: People) -> None:
    member = people.add(email="reader@mail.test", name="欧阳小明", language="zh")
    shown = list(preview_member("winback_gold", member, as_of=AS_OF))
    assert {one.language for one in shown} == {"zh"}
    assert all(one.problem == "" for one in shown)
    personal = next(one for one in shown if one.channel == "email" and one.variant == "gift")
    assert "欧***" in personal.text
    assert "小明" not in personal.text
    assert "广告" in personal.text
    mass = next(one for one in shown if one.channel == "wechat_mass")
    assert "欧" not in mass.text  # one text for all
    english = list(preview_member("winback_gold", member, language="en", channel="email"))
    assert {(one.channel, one.language) for one in english} == {("email", "en")}


def test_a_journey_is_shown_step_by_step(people: People) -> None:
    member = people.add(openid="oONE", name="Ann Lee", language="en")
    shown = list(preview_member("followup_reviews", member, channel="wechat_template"))
    assert [one.variant for one in shown] == ["ask", "remind", "thanks", "survey"]
    assert "20 pts: any review" in shown[2].text


def test_what_is_not_there_is_said(people: People) -> None:
    member = people.add(openid="oONE")
    with pytest.raises(ValueError, match="does not use the channel 'fax'; it uses"):
        list(preview_member("winback_gold", member, channel="fax"))
    with pytest.raises(ValueError, match="there is no member 999999"):
        list(preview_member("winback_gold", 999999))
    with pytest.raises(ValueError, match="language 'fr'"):
        list(preview_member("winback_gold", member, language="fr"))


def test_the_commands(people: People) -> None:
    member = people.add(email="reader@mail.test", name="Ann Lee", language="en")
    result = CliRunner().invoke(app, ["preview", "winback_gold", str(member), "--channel", "email"])
    assert result.exit_code == 0, result.output
    assert "email · gift · winback_gift · en · " in result.output
    assert "characters" in result.output
    assert "Ann Lee" not in result.output
    wrong = CliRunner().invoke(app, ["preview", "nothing", str(member)])
    assert wrong.exit_code == 1
    assert "there is no campaign 'nothing'" in wrong.output
    assert "followup_reviews" in wrong.output
    lengths = CliRunner().invoke(app, ["check", "--lengths"])
    assert "wechat_template · followup_reviews thanks · review_thanks · zh · 20 of 100 characters" in lengths.output


def test_every_text_of_the_house_fits(people: People) -> None:
    shown = list(all_lengths())
    assert [one.heading for one in shown if one.problem or one.longest > one.limit] == []
    assert len(shown) > 30
