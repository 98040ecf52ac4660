"""Folders where others put files: on this machine; on an SFTP server see sftp.py. Paths are relative to the folder, with "/"."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from nightmarket.platforms.base import AuthError, NotFound, Transport
from nightmarket.settings import ConfigError, Credentials


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
    if not credentials.host:
        return LocalFolder(credentials.conn_id, folder)
    from nightmarket.platforms.sftp import SftpFolder  # half a second to import: only who needs it pays

    return SftpFolder(credentials, folder, transport)


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
