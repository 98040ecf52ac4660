"""What a person can enter in a trigger form, and what is refused there.

Airflow itself checks types and enums with the words of jsonschema, and accepts unknown keys silently; check_form() is
the first thing every DAG of ours does.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from airflow.sdk import Param

from nightmarket.orchestration.sources import config_folder


def business_date_param() -> Param:
    return Param(
        None,
        type=["null", "string"],
        format="date",
        title="Business date 业务日期",
        description_md="Empty means the date of what triggered the run, else *yesterday* in Asia/Shanghai.",
    )


def limit_param() -> Param:
    return Param(
        None,
        type=["null", "integer"],
        minimum=1,
        title="Limit 条数上限",
        description_md="Stop each stream after so many records; empty means no limit. For trying out a new source.",
    )


def backfill_params() -> dict[str, Param]:
    """A past stretch to read again. Both empty: the night's own work, from where the last run stopped."""
    words = "Empty: from where the last run stopped. With both, that stretch is read again; what is known stays known."
    return {
        "backfill_from": Param(
            None, type=["null", "string"], format="date", title="Backfill from 补取开始", description_md=words
        ),
        "backfill_to": Param(
            None, type=["null", "string"], format="date", title="Backfill to 补取结束", description_md="Inclusive."
        ),
    }


def streams_param(names: Sequence[str]) -> Param:
    return Param(
        list(names),
        type="array",
        items={"type": "string", "enum": list(names)},
        examples=list(names),  # what makes the form show a list to choose from
        minItems=1,
        title="Streams 数据流",
        description_md="Which streams to read; all of them for a whole night.",
    )


def sources_param(names: Sequence[str]) -> Param:
    return Param(
        list(names),
        type="array",
        items={"type": "string", "enum": list(names)},
        examples=list(names),  # what makes the form show a list to choose from
        minItems=1,
        title="Sources 数据源",
        description_md="Which accounts to ask.",
    )


def dry_run_param(*, default: bool, what: str) -> Param:
    return Param(default, type="boolean", title="Dry run 演练", description_md=what)


def campaign_names() -> list[str]:
    """Campaigns by file name, without reading the files: the form lists broken ones too, and the run says what is wrong.

    Read at parse time, where the rest of the settings need not be known yet.
    """
    return sorted(path.stem for path in (config_folder() / "campaigns").glob("*.yaml"))


def campaign_form() -> dict[str, Param]:
    """The form of push_campaign. No sections: Airflow folds them away, and the dry-run switch must be seen."""
    names = campaign_names() or ["(no campaign in include/config/campaigns)"]
    return {
        "campaign": Param(names[0], type="string", enum=names, title="Campaign 活动"),
        "as_of": Param(
            None,
            type=["null", "string"],
            format="date",
            title="As-of date 截止日期",
            description="Whose marts decide who gets it; empty means yesterday in Asia/Shanghai.",
        ),
        "dry_run": dry_run_param(default=True, what="On: count and show, send nothing. **Off: messages go out.**"),
        "test_recipients": Param(
            [],
            type="array",
            items={"type": "string", "pattern": "^[0-9]+$"},
            title="Test recipients 测试对象",
            description="Member ids, one per line: only they get it, with coupons of the test pool.",
        ),
        "size_limit": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            title="Size limit 人数上限",
            description="At most so many messages; empty means the whole audience.",
        ),
    }


OPERATIONS = ("pause", "resume", "cancel", "extend", "rerun")  # as nightmarket.campaigns.operate.ACTIONS


def operate_form() -> dict[str, Param]:
    """The form of operate_run."""
    clock: dict[str, Any] = {"type": ["null", "string"], "pattern": "^[0-2][0-9]:[0-5][0-9]$"}
    return {
        "run_id": Param("", type="string", title="Run 轮次", description="As the console shows it: campaign@date."),
        "action": Param("pause", type="string", enum=list(OPERATIONS), title="Action 操作"),
        "reason": Param("", type="string", title="Reason 理由", description="For the audit log."),
        "dry_run": dry_run_param(default=True, what="On: say what would happen. **Off: do it.**"),
        "expires_after_hours": Param(
            None, type=["null", "integer"], minimum=1, maximum=720, title="Extend: hours 延长至小时数",
            description="New expires_after_hours, from the first allowed instant after the as-of day.",
        ),
        "opens": Param(None, **clock, title="Extend: window opens 发送开始", description="HH:MM; asks for a new approval."),
        "closes": Param(None, **clock, title="Extend: window closes 发送结束", description="HH:MM"),
    }  # fmt: skip


def check_form(conf: Mapping[str, Any] | None, known: Iterable[str]) -> None:
    """Refuse keys the form does not have: a misspelt `dryrun` must not start a real campaign. Raises ValueError."""
    fields = sorted(known)
    unknown = sorted(set(conf or {}) - set(fields))
    if unknown:
        names = ", ".join(repr(name) for name in unknown)
        there = f"its fields are {', '.join(fields)}" if fields else "it has no fields at all"
        raise ValueError(f"this form has no field {names}; {there}. Nothing was done.")


def person_of(dag_run: Any) -> str:
    """Who started a run, for the audit log: the signed-in user, or how it was started when nobody did."""
    return dag_run.triggering_user_name or f"airflow ({getattr(dag_run.run_type, 'value', dag_run.run_type)})"
