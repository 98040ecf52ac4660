"""One typed object for everything configurable: the environment and the files of include/config.

Every mistake is a ConfigError: one sentence that names the file, the line, the field and what to do.
Credentials never stand in files: they come from Airflow connections, given as AIRFLOW_CONN_<ID> in JSON form.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit
from zoneinfo import ZoneInfo

import yaml
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parents[2]
ModelT = TypeVar("ModelT", bound=BaseModel)
YamlLoader: Any = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # the one in C is ten times faster; every task reads YAML


class ConfigError(Exception):
    """A configuration mistake, as one sentence a person can act on."""


class StrictModel(BaseModel):
    """Base of all config models: unknown keys are mistakes, not decoration."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(BaseSettings):
    """The environment (prefix NIGHTMARKET_). `make up` writes it to var/<name>/env; production sets it itself."""

    model_config = SettingsConfigDict(env_prefix="NIGHTMARKET_", extra="ignore")

    warehouse_dsn: SecretStr  # role nightmarket_etl: everything but the vault's ciphertext
    vault_dsn: SecretStr | None = None  # role nightmarket_delivery: delivery and erasure only
    admin_dsn: SecretStr | None = None  # owner of the schemas: migrations only
    reader_dsn: SecretStr | None = None  # role nightmarket_reader: console, reports, analysts; else warehouse_dsn
    receiver_dsn: SecretStr | None = None  # role nightmarket_receiver: may add a push, nothing else; else warehouse_dsn
    token_key: SecretStr | None = None  # HMAC key of tokens, >= 32 characters; changing it breaks every join
    vault_keys: SecretStr | None = None  # "id:base64 of 32 bytes", comma separated; the first one encrypts
    timezone: str = "Asia/Shanghai"
    home: Path = ROOT
    var: Path = ROOT / "var"
    config_dir: Path = ROOT / "include" / "config"
    sql_dir: Path = ROOT / "include" / "sql"
    template_dir: Path = ROOT / "include" / "templates"

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process. Raises ConfigError when a required variable is missing or malformed."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "NIGHTMARKET_" + "_".join(str(part) for part in first["loc"]).upper()
        raise ConfigError(
            f"environment variable {name}: {first['msg'].lower()}. "
            "`make up` sets it for the local stack; see docs/runbook.md#environment for a server."
        ) from error


@dataclass(frozen=True)
class Credentials:
    """One account's address and secrets, in the shape of an Airflow connection."""

    conn_id: str
    host: str = ""
    login: str = ""
    password: str = field(default="", repr=False)
    port: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def require(self, parts: Mapping[str, str]) -> None:
        """Raise ConfigError when a part is empty. `parts`: 'host', 'login', 'password', 'extra.<name>' -> what it is here."""
        for name, words in parts.items():
            outer, _, inner = name.partition(".")
            if not (self.extra.get(inner) if inner else getattr(self, outer)):
                raise ConfigError(f"connection {self.conn_id!r}: {name} ({words}) is missing.")


_credentials_source: Callable[[str], Credentials] | None = None


def use_credentials_from(source: Callable[[str], Credentials] | None) -> None:
    """Let credentials() ask `source` in this process: tasks set Airflow's connections (nightmarket.orchestration.hooks)."""
    global _credentials_source
    _credentials_source = source


def credentials(conn_id: str) -> Credentials:
    """Credentials of an Airflow connection read from AIRFLOW_CONN_<CONN_ID> (JSON or URI form), without Airflow.

    Tasks read the same connection through nightmarket.orchestration.hooks, which also finds those kept in Airflow's
    database or a secrets backend. Raises ConfigError.
    """
    if _credentials_source is not None:
        return _credentials_source(conn_id)
    variable = f"AIRFLOW_CONN_{conn_id.upper()}"
    text = os.environ.get(variable)
    if not text:
        raise ConfigError(f"connection {conn_id!r}: environment variable {variable} is not set.")
    if text.lstrip().startswith("{"):
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{variable} is not valid JSON at character {error.pos}.") from None
        extra = data.get("extra") or {}
        if isinstance(extra, str):
            extra = json.loads(extra)
        return Credentials(
            conn_id,
            data.get("host") or "",
            data.get("login") or "",
            data.get("password") or "",
            data.get("port"),
            extra,
        )
    parts = urlsplit(text)
    return Credentials(
        conn_id,
        parts.hostname or "",
        unquote(parts.username or ""),
        unquote(parts.password or ""),
        parts.port,
        dict(parse_qsl(parts.query)),
    )


def load_yaml(path: Path, model: type[ModelT]) -> ModelT:
    """Read one YAML file into `model`.

    Raises ConfigError naming file, line, field and what is expected; the first mistake only, so that it is read.
    """
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{shown}: this file does not exist.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown}: not UTF-8 at byte {error.start}; save the file as UTF-8.") from None
    try:
        node = yaml.compose(text, Loader=YamlLoader)
        data = yaml.load(text, Loader=YamlLoader)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{shown}:{line}: not valid YAML: {getattr(error, 'problem', error)}.") from None
    duplicate = _duplicate_key(node)
    if duplicate:
        name, line = duplicate
        raise ConfigError(f"{shown}:{line}: {name}: this key stands twice; keep one.")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(mistake_in(path, model, error)) from None


def mistake_in(path: Path, model: type[BaseModel], error: ValidationError, *prefix: int | str) -> str:
    """The first mistake of a YAML file as a sentence; `prefix` is where in the file the model's own part begins."""
    mistakes = error.errors()  # a misspelt key explains the missing one, so it is named first
    first = next((mistake for mistake in mistakes if mistake["type"] == "extra_forbidden"), mistakes[0])
    loc = tuple(part for part in first["loc"] if not str(part).startswith("function-"))
    shown = "" if prefix or loc else "(top level): "
    message = {"extra_forbidden": "unknown key", "missing": "required key is missing"}.get(first["type"], first["msg"])
    hint = f" Known keys here: {', '.join(_known_keys(model, loc))}." if first["type"] == "extra_forbidden" else ""
    return f"{where(path, *prefix, *loc)}: {shown}{message}.{hint}"


def where(path: Path, *loc: int | str) -> str:
    """`file:line: dotted.field` of a place in a YAML file, for mistakes that only show when files are read together."""
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=YamlLoader)
    dotted = ".".join(str(part) for part in loc)
    return f"{shown}:{_line_of(node, loc)}" + (f": {dotted}" if dotted else "")


def _duplicate_key(node: yaml.Node | None) -> tuple[str, int] | None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                return key.value, key.start_mark.line + 1
            seen.add(key.value)
            if found := _duplicate_key(value):
                return found
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            if found := _duplicate_key(item):
                return found
    return None


def _line_of(node: yaml.Node | None, loc: tuple[int | str, ...]) -> int:
    """The line (from 1) of the deepest part of `loc` that stands in the file."""
    line = node.start_mark.line + 1 if node else 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if pair is None:
                continue  # a missing key, or a pydantic tag that is not part of the file
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Field names of the model that refused the last part of `loc` (best effort, for the hint)."""
    current: Any = model
    for part in loc[:-1]:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[str(part)].annotation
        for argument in getattr(current, "__args__", ()):
            if isinstance(argument, type) and issubclass(argument, BaseModel):
                current = argument
    return sorted(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []
