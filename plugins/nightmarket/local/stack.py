"""The local stack: embedded PostgreSQL, sandbox and Airflow 3.3 as one set of processes under var/<name>.

`make up` leaves it running, `make demo` and the end-to-end test stop it when they are done. Everything secret is made
at the first start and stays in var/<name>/secrets.json (mode 600).
"""

import base64
import contextlib
import errno
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from nightmarket.local.airflow_api import AirflowApi
from nightmarket.local.connections import connection_environment
from nightmarket.local.database import LocalError, Server, new_password, port_in_use
from nightmarket.settings import ROOT
from nightmarket.sources import account_pools

ROLES = ("nightmarket_etl", "nightmarket_delivery", "nightmarket_reader", "nightmarket_receiver")
NEEDED_BYTES = 2 * 1024**3
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Ports:
    """Where the stack listens, all on 127.0.0.1."""

    web: int
    sandbox: int
    smtp: int
    postgres: int

    @classmethod
    def from_environment(cls) -> "Ports":
        defaults = {"PORT": 8080, "SANDBOX_PORT": 8180, "SMTP_PORT": 8125, "PG_PORT": 54329}
        values = []
        for name, default in defaults.items():
            text = os.environ.get(f"NIGHTMARKET_{name}", str(default))
            if not text.isdigit() or not 1 <= int(text) <= 65535:
                raise LocalError(f"NIGHTMARKET_{name}={text!r} is not a port number (1 to 65535).")
            values.append(int(text))
        return cls(*values)

    def check_free(self) -> None:
        for variable, port in zip(
            ("NIGHTMARKET_PORT", "NIGHTMARKET_SANDBOX_PORT", "NIGHTMARKET_SMTP_PORT", "NIGHTMARKET_PG_PORT"),
            (self.web, self.sandbox, self.smtp, self.postgres),
            strict=True,
        ):
            if port_in_use(port):
                raise LocalError(
                    f"port {port} is in use. If a stack of yours is running, stop it with `make down`; "
                    f"otherwise set {variable} to a free port."
                )


@dataclass
class Stack:
    """One local stack. `start()` once, `check_alive()` while waiting, `stop()` always."""

    name: str
    ports: Ports
    sandbox_arguments: tuple[str, ...] = ()
    say: Callable[[str], None] = print
    environment: dict[str, str] = field(default_factory=dict)
    _children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return ROOT / "var" / self.name

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.web}"

    @property
    def access(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "sandbox" / "access.json").read_text()))

    @property
    def server(self) -> Server:
        return Server(self.folder / "pg", self.ports.postgres, self._secrets()["postgres"])

    @property
    def admin_password(self) -> str:
        return self._secrets()["web_admin"]

    def reader_dsn(self) -> str:
        """Where an analyst connects: core, mart, push and ops, nothing personal."""
        return self.server.dsn("nightmarket", "nightmarket_reader", self._secrets()["nightmarket_reader"])

    # ------------------------------------------------------------------------------------------------ start and stop

    def start(self) -> None:
        """Start everything and wait until it is healthy. Raises LocalError; the caller then calls stop()."""
        self._stop_leftovers()
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < NEEDED_BYTES:
            raise LocalError(f"only {free // 2**20} MB are free on the disk of {self.folder}; the stack needs 2 GB.")
        self.ports.check_free()
        self.say("starting the sandbox and PostgreSQL 18 (embedded)")
        (self.folder / "sandbox").mkdir(exist_ok=True)
        (self.folder / "sandbox" / "access.json").unlink(missing_ok=True)
        self._spawn(
            "sandbox",
            [sys.executable, "-m", "sandbox", "--port", str(self.ports.sandbox), "--smtp-port", str(self.ports.smtp),
             "--access-file", str(self.folder / "sandbox" / "access.json"), *self.sandbox_arguments],
            {"PYTHONPATH": str(ROOT / "include")},
        )  # fmt: skip
        server = self.server
        server.start()
        for database in ("nightmarket", "airflow"):
            server.create_database(database)
        self._build_environment(server)
        self.say("migrating the warehouse and Airflow's own database")
        with ThreadPoolExecutor() as pool:
            airflow_database = pool.submit(self._run_once, "airflow-migrate", [str(BIN / "airflow"), "db", "migrate"])
            self._migrate_warehouse(server)
            self._wait("the sandbox", (self.folder / "sandbox" / "access.json").exists, 60)
            airflow_database.result()
        self.environment |= connection_environment(self.access)
        self._write_private("env.json", self.environment)
        self.say("starting Airflow: api-server, scheduler, dag-processor, triggerer")
        airflow = str(BIN / "airflow")
        self._spawn("api-server", [airflow, "api-server", "--workers", "1"])
        self._spawn("dag-processor", [airflow, "dag-processor"])
        self._wait("Airflow's API", self._api_answers, 120)
        # a task picked up before the API answers would fail, so these two come after it
        self._spawn("scheduler", [airflow, "scheduler", "--skip-serve-logs"])
        self._spawn("triggerer", [airflow, "triggerer", "--skip-serve-logs"])
        # the first call to the interface of tasks builds it, four seconds of work; so it is made while these two start
        with contextlib.suppress(requests.RequestException):
            requests.get(f"{self.base_url}/execution/health", timeout=30)
        self._wait("Airflow", self._all_healthy, 120)
        AirflowApi(self.base_url, "admin", self.admin_password, self.check_alive).set_pools(account_pools())
        self._tell_vendors()

    def stop(self) -> None:
        """Stop what this stack started, last started first, then PostgreSQL. Never raises for what is already gone."""
        pids = [child.pid for child in reversed(self._children.values())] or self._recorded_pids()
        _terminate(pids)
        self._children.clear()
        if (self.folder / "secrets.json").exists():
            with contextlib.suppress(subprocess.SubprocessError):
                self.server.stop()
        (self.folder / "processes.json").unlink(missing_ok=True)

    def is_running(self) -> bool:
        return any(psutil.pid_exists(pid) for pid in self._recorded_pids()) or (
            (self.folder / "secrets.json").exists() and self.server.is_running()
        )

    def check_alive(self) -> None:
        """Raise LocalError when a process of the stack has died."""
        for name, child in self._children.items():
            code = child.poll()
            if code is not None:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise LocalError(f"the {name} {how}; its last words are in {self._log(name)}.")
        if not self.server.is_running():
            raise LocalError(f"PostgreSQL has stopped; {self.folder}/pg/server.log says why.")

    def wipe(self) -> None:
        """Forget everything of this stack: the demo starts from nothing."""
        self._stop_leftovers()
        for part in ("pg", "airflow", "sandbox", "logs", "reports", "calls", "clock", "env.json"):
            path = self.folder / part
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    # ----------------------------------------------------------------------------------------------------- the clock

    def set_clock(self, moment: float) -> None:
        """Make it `moment` (Unix seconds) for the product and for the sandbox; both clocks then run on."""
        from datetime import UTC, datetime

        clock = self.folder / "clock"
        moved = clock.with_suffix(".new")  # in one step: whoever reads an empty file would take the real time for it
        moved.write_text(f"{moment - time.time():.3f}")
        moved.replace(clock)
        self.control("/clock", {"now": datetime.fromtimestamp(moment, UTC).isoformat()})

    def control(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """GET of the sandbox's control API, or POST of `body`."""
        control = self.access["control"]
        answer = requests.request(
            "GET" if body is None else "POST",
            control["url"] + path,
            json=body,
            headers={"Authorization": f"Bearer {control['token']}"},
            timeout=120,
        )
        answer.raise_for_status()
        return dict(answer.json())

    def _tell_vendors(self) -> None:
        """What one writes into the console of a vendor of SMS: where our receiver is."""
        for vendor in ("sms_aliyun", "sms_tencent"):
            address = f"{self.base_url}/nightmarket/webhooks/{vendor}?secret={self.access[vendor]['push_secret']}"
            self.control("/sms", {"vendor": vendor, "reports": address, "replies": address})

    # ------------------------------------------------------------------------------------------------------ the parts

    def _secrets(self) -> dict[str, str]:
        path = self.folder / "secrets.json"
        if path.exists():
            found = dict(json.loads(path.read_text()))
            fresh = {role: new_password() for role in ROLES if role not in found}
            if fresh:  # a role that is newer than this stack
                found |= fresh
                self._write_private("secrets.json", found)
            return found
        made = {name: new_password() for name in ("postgres", *ROLES, "web_admin", "api_secret", "token_key")}
        made["token_key"] = secrets.token_urlsafe(48)
        made["jwt_secret"] = secrets.token_urlsafe(64)
        made["fernet"] = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
        made["vault_keys"] = "k1:" + base64.b64encode(secrets.token_bytes(32)).decode()
        self._write_private("secrets.json", made)
        return made

    def _write_private(self, name: str, data: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(json.dumps(data, indent=1))

    def _build_environment(self, server: Server) -> None:
        secret = self._secrets()
        airflow_home = self.folder / "airflow"
        airflow_home.mkdir(exist_ok=True)
        passwords = airflow_home / "passwords.json"
        passwords.touch(mode=0o600)
        passwords.write_text(json.dumps({"admin": secret["web_admin"]}))
        warehouse = server.dsn("nightmarket", "nightmarket_etl", secret["nightmarket_etl"])
        self.environment = {
            "NIGHTMARKET_WAREHOUSE_DSN": warehouse,
            "NIGHTMARKET_VAULT_DSN": server.dsn("nightmarket", "nightmarket_delivery", secret["nightmarket_delivery"]),
            "NIGHTMARKET_ADMIN_DSN": server.dsn("nightmarket"),
            "NIGHTMARKET_READER_DSN": self.reader_dsn(),
            "NIGHTMARKET_RECEIVER_DSN": server.dsn(
                "nightmarket", "nightmarket_receiver", secret["nightmarket_receiver"]
            ),
            "NIGHTMARKET_TOKEN_KEY": secret["token_key"],
            "NIGHTMARKET_VAULT_KEYS": secret["vault_keys"],
            "NIGHTMARKET_VAR": str(self.folder),
            "NIGHTMARKET_CLOCK_FILE": str(self.folder / "clock"),
            "AIRFLOW_HOME": str(airflow_home),
            "AIRFLOW_CONN_WAREHOUSE": warehouse + "?options=-c%20timezone%3DAsia/Shanghai",
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "nightmarket.orchestration.executor.PreloadedExecutor",
            "AIRFLOW__CORE__PARALLELISM": "6",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",  # the test button of our own connection types
            "AIRFLOW__CORE__FERNET_KEY": secret["fernet"],
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.base_url}/execution/",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": server.dsn("airflow").replace("://", "+psycopg2://", 1),
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.ports.web),
            "AIRFLOW__API__BASE_URL": self.base_url,
            "AIRFLOW__API__SECRET_KEY": secret["api_secret"],
            "AIRFLOW__API_AUTH__JWT_SECRET": secret["jwt_secret"],
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
            # a supervisor often sees the end of its task's process only at the next heartbeat, and holds the slot until then
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
            # how soon a changed YAML file is seen; nobody changes one while a story is told
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30" if self.name == "local" else "3600",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.folder / "logs" / "tasks"),
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "PYTHONPATH": str(ROOT / "plugins"),
        }
        (self.folder / "clock").touch()

    def _migrate_warehouse(self, server: Server) -> None:
        from nightmarket.settings import get_settings
        from nightmarket.warehouse import migrate

        os.environ.update(self.environment)
        get_settings.cache_clear()
        migrate(server.dsn("nightmarket"))
        server.grant_logins({role: self._secrets()[role] for role in ROLES})

    def _log(self, name: str) -> Path:
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        return self.folder / "logs" / f"{name}.log"

    def _spawn(self, name: str, command: list[str], extra: dict[str, str] | None = None) -> None:
        """Start a child in its own process group, so that stopping it reaches its children too."""
        with self._log(name).open("ab") as log:
            self._children[name] = subprocess.Popen(
                command,
                env={**_clean_environment(), **self.environment, **(extra or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
            )
        record = {child_name: child.pid for child_name, child in self._children.items()}
        (self.folder / "processes.json").write_text(json.dumps(record))

    def _run_once(self, name: str, command: list[str]) -> None:
        with self._log(name).open("ab") as log:
            done = subprocess.run(
                command, env={**_clean_environment(), **self.environment}, stdout=log, stderr=log, check=False
            )
        if done.returncode:
            raise LocalError(f"{name} failed with exit code {done.returncode}:\n{_tail(self._log(name))}")

    def _wait(self, what: str, ready: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            self.check_alive()
            if time.monotonic() > deadline:
                raise LocalError(f"{what} did not come up within {seconds:.0f} s; look into {self.folder}/logs.")
            time.sleep(0.2)

    def _health(self) -> dict[str, Any]:
        try:
            return dict(requests.get(f"{self.base_url}/api/v2/monitor/health", timeout=5).json())
        except (requests.RequestException, ValueError):
            return {}

    def _api_answers(self) -> bool:
        return bool(self._health())

    def _all_healthy(self) -> bool:
        health = self._health()
        parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        return bool(health) and all((health.get(part) or {}).get("status") == "healthy" for part in parts)

    def _recorded_pids(self) -> list[int]:
        try:
            record = json.loads((self.folder / "processes.json").read_text())
        except (FileNotFoundError, ValueError):
            return []
        return [pid for pid in reversed(record.values()) if _is_ours(pid)]

    def _stop_leftovers(self) -> None:
        """A stack that was killed hard leaves children behind; they go before a new one starts."""
        if self._recorded_pids() or (self.folder / "pg" / "postmaster.pid").exists():
            self.stop()


def _clean_environment() -> dict[str, str]:
    """Our environment without Airflow settings of the caller, which would leak into the stack."""
    return {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW") and k != "PYTHONDONTWRITEBYTECODE"}


def _is_ours(pid: int) -> bool:
    """Guards against a process number that was given to somebody else since."""
    try:
        process = psutil.Process(pid)
        return str(ROOT) in " ".join(process.cmdline()) or process.cwd() == str(ROOT)
    except psutil.Error:
        return False


def _terminate(pids: list[int]) -> None:
    """TERM every process group, wait, KILL what is left, children of children included."""
    family: list[psutil.Process] = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            family += [process, *process.children(recursive=True)]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=12)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def _tail(path: Path, lines: int = 8) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"


def sentence_for(error: BaseException) -> str:
    """What to tell a person about an error of this machine."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full; free some space and start again."
    if isinstance(error, PermissionError):
        return f"no permission for {error.filename}; the project folder must be writable."
    return str(error)
