"""A folder on an SFTP server, where others put files.

The server is only spoken to when its host key is the one that the connection names. Every operation is bounded in time and
tried again when the connection breaks; typed errors of platforms.base.
"""

import asyncio
import hashlib
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import asyncssh

from nightmarket.platforms.base import AuthError, NotFound, PlatformDown, PlatformError, Refused, Transport
from nightmarket.platforms.folders import Found
from nightmarket.settings import ConfigError, Credentials

LOGIN_SECONDS = 20
OPERATION_SECONDS = 60  # for a listing or a rename
STALL_SECONDS = 30  # without a byte of a file that is being fetched
BLOCK_BYTES = 1 << 18
T = TypeVar("T")


class SftpFolder:
    """A folder of an SFTP server, over one connection that is opened when it is first needed."""

    is_local = False

    def __init__(self, credentials: Credentials, folder: str, transport: Transport) -> None:
        self._name = credentials.conn_id
        self._root = PurePosixPath(folder)
        self._transport = transport
        self._options = _login(credentials)
        self._runner = asyncio.Runner()
        self._connection: asyncssh.SSHClientConnection | None = None
        self._sftp: asyncssh.SFTPClient | None = None
        self._spool = tempfile.TemporaryDirectory(prefix="nightmarket-sftp-")

    def words(self) -> str:
        return f"folder {self._root} of {self._options['host']}"

    def list(self, subfolder: str) -> list[Found]:
        async def listing(sftp: asyncssh.SFTPClient) -> list[Found]:
            place = self._root / subfolder
            if not await sftp.isdir(str(place)):
                if subfolder:
                    return []
                raise NotFound(
                    self._name, "list", f"the server has no folder {place}; see extra.folder of the connection"
                )
            entries = [entry async for entry in sftp.scandir(str(place))]
            return [
                Found(
                    (PurePosixPath(subfolder) / str(entry.filename)).as_posix(),
                    entry.attrs.size or 0,
                    float(entry.attrs.mtime or 0),
                )
                for entry in entries
                if entry.attrs.type == asyncssh.FILEXFER_TYPE_REGULAR
            ]

        return self._do("list", listing)

    @contextmanager
    def fetched(self, path: str) -> Iterator[Path]:
        local = Path(self._spool.name) / hashlib.sha256(path.encode()).hexdigest()

        async def fetch(sftp: asyncssh.SFTPClient) -> None:
            async with sftp.open(str(self._root / path), "rb") as remote:
                with local.open("wb") as target:
                    while block := await asyncio.wait_for(remote.read(BLOCK_BYTES), STALL_SECONDS):
                        assert isinstance(block, bytes)
                        target.write(block)

        self._do("fetch", fetch, seconds=None)
        try:
            yield local
        finally:
            local.unlink(missing_ok=True)

    def move(self, path: str, target: str) -> None:
        async def rename(sftp: asyncssh.SFTPClient) -> None:
            source, place = str(self._root / path), str(self._root / target)
            if not await sftp.exists(source):
                return
            await sftp.makedirs(str(PurePosixPath(place).parent), exist_ok=True)
            if await sftp.exists(place):  # the same content, from an earlier try
                await sftp.remove(place)
            await sftp.rename(source, place)

        self._do("move", rename)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            with suppress(Exception):  # it may be gone already; nothing more is wanted of it
                self._runner.run(asyncio.wait_for(self._connection.wait_closed(), 5))
        self._runner.close()
        self._spool.cleanup()

    def _do(
        self,
        method: str,
        work: Callable[[asyncssh.SFTPClient], Awaitable[T]],
        *,
        seconds: float | None = OPERATION_SECONDS,
    ) -> T:
        """Run `work` on the open connection, or on a new one; tried again when the connection breaks."""

        async def once() -> T:
            sftp = await self._connected()
            return await asyncio.wait_for(work(sftp), seconds)

        def attempt() -> T:
            self._transport.admit(method)
            try:
                return self._runner.run(once())
            except PlatformError:
                raise
            except Exception as error:
                self._connection = self._sftp = None
                raise self._in_words(method, error) from None

        return self._transport.retry(attempt)

    async def _connected(self) -> asyncssh.SFTPClient:
        if self._sftp is None:
            self._connection = await asyncio.wait_for(asyncssh.connect(**self._options), LOGIN_SECONDS)
            self._sftp = await asyncio.wait_for(self._connection.start_sftp_client(), LOGIN_SECONDS)
        return self._sftp

    def _in_words(self, method: str, error: Exception) -> PlatformError:
        host = self._options["host"]
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            return AuthError(
                self._name, method,
                f"the host key of {host} is not the one in extra.known_hosts; ask the server's owner whether it was changed",
            )  # fmt: skip
        if isinstance(error, asyncssh.PermissionDenied):
            return AuthError(
                self._name, method,
                f"{host} refuses the login; check login, password or extra.private_key of the connection",
            )  # fmt: skip
        if isinstance(error, asyncssh.SFTPPermissionDenied):
            return AuthError(self._name, method, f"the account may not {method} in {self._root}; change its rights")
        if isinstance(error, asyncssh.SFTPNoSuchFile | asyncssh.SFTPNoSuchPath):
            return NotFound(self._name, method, f"the file is gone from {self._root}")
        if isinstance(error, TimeoutError | asyncio.TimeoutError):
            return PlatformDown(self._name, method, f"no answer from {host} in time")
        if isinstance(
            error, OSError | asyncssh.ConnectionLost | asyncssh.DisconnectError | asyncssh.SFTPConnectionLost
        ):
            return PlatformDown(self._name, method, f"{host} cannot be reached, or the connection was cut")
        return Refused(self._name, method, f"the server refuses ({type(error).__name__})")


def _login(credentials: Credentials) -> dict[str, Any]:
    """Arguments of asyncssh.connect. Raises ConfigError for what is missing or unreadable."""
    extra, name = credentials.extra, credentials.conn_id
    known_hosts = str(extra.get("known_hosts") or "").strip()
    if not known_hosts:
        raise ConfigError(
            f"connection {name!r}: extra.known_hosts is missing; put the server's line of known_hosts there "
            "(ssh-keyscan shows it, its owner confirms it)."
        )
    if not credentials.login:
        raise ConfigError(f"connection {name!r}: login (the SFTP account) is missing.")
    options: dict[str, Any] = {
        "host": credentials.host,
        "port": credentials.port or 22,
        "username": credentials.login,
        "agent_path": None,
        "config": None,
        "client_keys": None,
        "keepalive_interval": 15,
    }
    try:
        options["known_hosts"] = asyncssh.import_known_hosts(known_hosts + "\n")
    except ValueError:
        raise ConfigError(f"connection {name!r}: extra.known_hosts is not a line of a known_hosts file.") from None
    key = str(extra.get("private_key") or "")
    if key:
        try:
            options["client_keys"] = [asyncssh.import_private_key(key, extra.get("passphrase") or None)]
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError):
            raise ConfigError(
                f"connection {name!r}: extra.private_key cannot be read; is it a whole key, and extra.passphrase right?"
            ) from None
    elif credentials.password:
        options["password"] = credentials.password
    else:
        raise ConfigError(f"connection {name!r}: neither password nor extra.private_key is given.")
    return options
