"""Our shops and social accounts: sources.yaml, read and judged; which platform module serves which source."""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, ValidationError, field_validator

from nightmarket.platforms.base import Platform, Stream
from nightmarket.settings import ConfigError, StrictModel, get_settings, load_yaml, mistake_in, where


class PlatformModules(Mapping[str, Platform]):
    """The platform modules by name, each imported when it is asked for: a task needs one of them, and there are a dozen."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __getitem__(self, name: str) -> Platform:
        if name not in self._names:
            raise KeyError(name)
        module: Any = import_module(f"nightmarket.platforms.{name}")
        return module  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


PLATFORMS = PlatformModules(
    "taobao",
    "jd",
    "youzan",
    "weidian",
    "wechat_store",
    "shopify",
    "woocommerce",
    "files",
    "rest",
    "wechat_official",
    "weibo",
    "own_pages",
    "sms_aliyun",
    "sms_tencent",
)
POOL_SLOTS = 4  # tasks of one account at once; how fast they call is the account's own limit (calls_per_second)
SOURCE_ID = re.compile(r"[a-z][a-z0-9_]{1,49}")
CRON = re.compile(r"[\d*/,\-]+( [\d*/,\-A-Za-z]+){4}")


class UnknownSource(ConfigError):
    """sources.yaml has no such source or stream, as one sentence."""


class StreamConfig(StrictModel):
    """What a person may change about a stream; unset keys take the platform module's own values."""

    overlap_minutes: int | None = Field(default=None, ge=0, le=60 * 24 * 60)
    window_minutes: int | None = Field(default=None, ge=1, le=60 * 24 * 365)


class SilenceConfig(StrictModel):
    """After how many days without a new fact a source is told of, and stops the night (None: never)."""

    warn_days: int | None = Field(ge=1, le=3660)
    fail_days: int | None = Field(default=None, ge=1, le=3660)


SILENCE = {
    "shop": SilenceConfig(warn_days=3, fail_days=14),
    "social": SilenceConfig(warn_days=7, fail_days=30),
    "pages": SilenceConfig(warn_days=14),  # nobody clicks where no campaign runs
}


class SourceBlock(StrictModel):
    """One block of sources.yaml."""

    platform: str
    kind: Literal["shop", "social", "pages"]
    name: str = Field(min_length=1)
    conn_id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    schedule: str | None = None  # cron; None = only by hand
    currency_code: str = Field(default="CNY", pattern=r"^[A-Z]{3}$")
    is_store: bool = False  # tills: what somebody saw online may have led there
    time_zone: str = "Asia/Shanghai"
    account: str | None = None  # pages only: the source whose pushes (follow, leave, delivered) this archive keeps
    history_days: int = Field(default=730, ge=1, le=3650)
    max_requests: int = Field(default=20_000, ge=1)
    max_minutes: int = Field(default=60, ge=1)
    calls_per_second: float | None = Field(
        default=None, gt=0
    )  # of the account, all workers together; None = no limit of ours
    calls_per_day: int | None = Field(default=None, ge=1)  # spent by priority: orders first
    console_url: str | None = Field(
        default=None, pattern=r"^https?://"
    )  # where a person looks into the platform itself
    silence: SilenceConfig | None = None  # default: SILENCE, by kind
    streams: dict[str, StreamConfig] = Field(min_length=1)
    options: dict[str, Any] = Field(
        default_factory=dict
    )  # the platform's own; its page in docs/connections explains them

    @field_validator("platform")
    @classmethod
    def _platform_exists(cls, value: str) -> str:
        if value not in PLATFORMS:
            raise ValueError(f"unknown platform {value!r}; known: {', '.join(sorted(PLATFORMS))}")
        return value

    @field_validator("schedule")
    @classmethod
    def _schedule_is_cron(cls, value: str | None) -> str | None:
        if value is not None and not CRON.fullmatch(value):
            raise ValueError(f'{value!r} is not a cron expression of five fields, e.g. "30 1 * * *"')
        return value

    @field_validator("time_zone")
    @classmethod
    def _zone_exists(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"unknown time zone {value!r}; use a name like Asia/Shanghai") from error
        return value


class SourceConfig(SourceBlock):
    """A source: its block, its id, and its options as the platform's own model."""

    source_id: str
    settings: StrictModel  # `options`, validated

    @property
    def silent_after(self) -> SilenceConfig:
        return self.silence or SILENCE[self.kind]

    @property
    def module(self) -> Platform:
        return PLATFORMS[self.platform]

    def all_streams(self) -> Mapping[str, Stream]:
        """What the platform can give this source; `streams` says which of them are read."""
        return self.module.streams(self.settings)

    def stream(self, name: str) -> Stream:
        """One stream that this source reads. Raises UnknownSource."""
        if name not in self.streams:
            raise UnknownSource(
                f"source {self.source_id!r} has no stream {name!r}; known: {', '.join(sorted(self.streams))}."
            )
        return self.all_streams()[name]


class SourcesFile(StrictModel):
    """include/config/sources.yaml."""

    sources: dict[str, SourceBlock] = Field(min_length=1)


def load_sources(path: Path | None = None) -> dict[str, SourceConfig]:
    """All sources by id. Raises ConfigError that names file, line and field."""
    path, changed = _file(path)
    return {name: _source(path, changed, name) for name in _blocks(path, changed)}


def source(source_id: str, path: Path | None = None) -> SourceConfig:
    """One source; the others are read, not judged. Raises UnknownSource when sources.yaml has no such block, ConfigError."""
    path, changed = _file(path)
    known = _blocks(path, changed)
    if source_id not in known:
        raise UnknownSource(f"sources.yaml has no source {source_id!r}; known: {', '.join(sorted(known))}.")
    return _source(path, changed, source_id)


def _file(path: Path | None) -> tuple[Path, int]:
    path = path or get_settings().config_dir / "sources.yaml"
    return path, path.stat().st_mtime_ns if path.exists() else 0


@lru_cache(maxsize=4)
def _blocks(path: Path, _changed: int) -> dict[str, SourceBlock]:
    return load_yaml(path, SourcesFile).sources


@lru_cache(maxsize=64)
def _source(path: Path, changed: int, name: str) -> SourceConfig:
    blocks = _blocks(path, changed)
    block = blocks[name]
    if not SOURCE_ID.fullmatch(name):
        raise ConfigError(
            f"{where(path, 'sources', name)}: a source id is made of lower-case letters, digits and _, and starts with a letter."
        )
    if block.account is not None and block.account not in blocks:
        raise ConfigError(
            f"{where(path, 'sources', name, 'account')}: there is no source {block.account!r}; known: {', '.join(sorted(blocks))}."
        )
    module = PLATFORMS[block.platform]
    try:
        options = module.Options.model_validate(block.options)
    except ValidationError as error:
        raise ConfigError(mistake_in(path, module.Options, error, "sources", name, "options")) from None
    known = module.streams(options)
    for stream in block.streams:
        if stream not in known:
            raise ConfigError(
                f"{where(path, 'sources', name, 'streams', stream)}: {module.NAME} has no stream {stream!r}; "
                f"known: {', '.join(sorted(known))}."
            )
    return SourceConfig(source_id=name, settings=options, **block.model_dump())


def account_pool(conn_id: str) -> str:
    """The Airflow pool of an account: how many tasks may use it at once."""
    return f"account_{conn_id}"


def account_pools() -> dict[str, dict[str, object]]:
    """The pools of all accounts, in the form `airflow pools import` takes."""
    return {
        account_pool(config.conn_id): {
            "slots": POOL_SLOTS,
            "description": f"tasks that read through the connection {config.conn_id} at once",
            "include_deferred": False,
        }
        for config in load_sources().values()
    }
