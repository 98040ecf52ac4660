"""Folders where others put files: on this machine, or on an SFTP server. Paths are relative to the folder, with "/".

An SFTP server is only spoken to when its host key is the one that the connection names. Every operation is bounded in time
and tried again when the connection breaks; typed errors of platforms.base.
"""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

import asyncssh

from nightmarket.platforms.base import AuthError, NotFound, PlatformDown, PlatformError, Refused, Transport
from nightmarket.settings import ConfigError, Credentials

LOGIN_SECONDS = 20
OPERATION_SECONDS = 60  # for a listing or a rename
STALL_SECONDS = 30  # without a byte of a file that is being fetched
BLOCK_BYTES = 1 << 18
T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """A file as the folder lists it."""

    path: str
    size: int
    modified: float  # Unix seconds, by the folder's own clock


class Folder(Protocol):
    """What the files platform needs of a folder."""

    is_local: bool

    def words(self) -> str:
        """Where it is, for sentences."""
        ...

    def list(self, subfolder: str) -> list[Found]:
        """Plain files directly in a subfolder ("" is the folder itself); nothing when it does not exist."""
        ...

    def fetched(self, path: str) -> Any:
        """Context manager: a local path of the file's content, as long as the block lasts."""
        ...

    def move(self, path: str, target: str) -> None:
        """Move within the folder, making subfolders. A file that is gone already, or a target that exists, is no error."""
        ...

    def close(self) -> None: ...


def open_folder(credentials: Credentials, transport: Transport) -> Folder:
    """The folder of a connection: SFTP when it has a host, else one of this machine. Raises ConfigError."""
    folder = str(credentials.extra.get("folder") or "")
    if not folder:
        raise ConfigError(f"connection {credentials.conn_id!r}: extra.folder (where the files are) is missing.")
    return SftpFolder(credentials, folder, transport) if credentials.host else LocalFolder(credentials.conn_id, folder)


def digest(path: Path) -> bytes:
    """SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


# ------------------------------------------------------------------------------------------------------------ local
class LocalFolder:
    """A folder of this machine, or a mounted one."""

    is_local = True

    def __init__(self, name: str, folder: str) -> None:
        self._name = name
        self._root = Path(folder)

    def words(self) -> str:
        return f"folder {self._root}"

    def list(self, subfolder: str) -> list[Found]:
        with self._errors("list"):
            if not self._root.is_dir():
                raise NotFound(
                    self._name, "list", f"there is no folder {self._root}; see extra.folder of the connection"
                )
            place = self._root / subfolder
            if not place.is_dir():
                return []
            return [
                Found((PurePosixPath(subfolder) / entry.name).as_posix(), entry.stat().st_size, entry.stat().st_mtime)
                for entry in os.scandir(place)
                if entry.is_file()
            ]

    @contextmanager
    def fetched(self, path: str) -> Iterator[Path]:
        local = self._root / path
        if not local.is_file():
            raise NotFound(self._name, "fetch", f"{path} is gone")
        yield local

    def move(self, path: str, target: str) -> None:
        with self._errors("move"), suppress(FileNotFoundError):
            place = self._root / target
            place.parent.mkdir(parents=True, exist_ok=True)
            (self._root / path).replace(place)

    def close(self) -> None:
        return None

    @contextmanager
    def _errors(self, method: str) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            raise AuthError(
                self._name,
                method,
                f"this process may not {method} in {self._root} ({error.strerror}); change its rights",
            ) from None


# ------------------------------------------------------------------------------------------------------------- SFTP
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
