"""Durable files: whole at any moment, whatever is killed and whenever the power fails.

The bytes go to an unfinished file on the same disk, local or NFS, reach the platter (fsync) and
get their name by one rename; then the folder is synced, so that the rename survives as well. A
reader sees the file as it was or as it is, never half of it. A folder that one process at a time
may write in is locked.
"""

import contextlib
import fcntl
import os
import time
import uuid
from pathlib import Path
from typing import TextIO

from mbrl.errors import DiskError, MbrlError

UNFINISHED = ".tmp"
"""Ending of a file that has not got its name yet."""


def write_atomically(path: Path, content: str | bytes, temporary: Path | None = None) -> None:
    """Write a file whole or not at all, with its folder, replacing one of that name.

    Several writers at once need a folder on the same disk for their unfinished files: `temporary`.

    Raises:
        DiskError: the disk is full or refuses; nothing is left behind.
    """
    data = content.encode() if isinstance(content, str) else content
    if temporary is None:
        unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    else:
        unfinished = temporary / f"{uuid.uuid4().hex}{UNFINISHED}"
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(unfinished, data)
        rename(unfinished, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise DiskError(
            f"cannot write {path} ({len(data)} bytes): {error.strerror or error}; "
            "free disk space, make the folder writable, or choose another folder"
        ) from error


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the platter; a crash may leave half of it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give a file or folder its name, so that it still has it after a power cut."""
    os.replace(source, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the platter."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(source: Path, folder: Path) -> bool:
    """Move a file into a folder of the same disk; False if another process took it first.

    Raises:
        DiskError: the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rename(source, folder / source.name)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DiskError(
            f"cannot move {source} to {folder}: {error.strerror or error}; make it writable"
        ) from error
    return True


def sweep(folder: Path, max_age_s: float) -> int:
    """Delete files that a killed writer left unfinished longer than `max_age_s` seconds ago."""
    removed = 0
    for path in folder.glob(f"*{UNFINISHED}"):
        try:
            if time.time() - path.stat().st_mtime >= max_age_s:
                path.unlink()
                removed += 1
        except FileNotFoundError:  # its writer has just given it its name
            continue
    return removed


def lock_folder(folder: Path) -> TextIO:
    """Take a run folder for this process, until the returned file is closed.

    Raises:
        MbrlError: another process holds it.
    """
    lock = (folder / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise MbrlError(
            f"{folder}: expected a run folder nobody is using, but another process holds it; "
            f"wait for it, or choose another folder with run.dir=..."
        ) from None
    return lock
