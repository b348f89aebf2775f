"""Publish a file whole or not at all, on a local or NFS disk.

The bytes go to a temporary folder of the same disk, reach the platter (fsync), and appear under
their final name by one rename; the folder is then synced so that the rename survives a power cut.
A reader therefore never sees half a file, whatever is killed when.
"""

import os
import time
import uuid
from pathlib import Path

from mbrl.errors import ReplayError


def publish(data: bytes, target: Path, temporary: Path) -> None:
    """Write `data` as `target` atomically, replacing a file of that name.

    Args:
        data: the whole content.
        target: final path; its folder is made if missing.
        temporary: folder on the same disk for the unfinished file.

    Raises:
        ReplayError: the disk is full or refuses; nothing is left behind.
    """
    unfinished = temporary / f"{uuid.uuid4().hex}.tmp"
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_synced(data, unfinished)
        os.replace(unfinished, target)
        _sync_folder(target.parent)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ReplayError(
            f"cannot write {target} ({len(data)} bytes): {error.strerror or error}; "
            "free disk space, make the folder writable, or choose another folder"
        ) from error


def move(source: Path, folder: Path) -> bool:
    """Move a file into a folder of the same disk; False if another process took it first.

    Raises:
        ReplayError: the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.replace(source, folder / source.name)
        _sync_folder(folder)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ReplayError(
            f"cannot move {source} to {folder}: {error.strerror or error}; make it writable"
        ) from error
    return True


def sweep(folder: Path, max_age_s: float) -> int:
    """Delete files that a killed writer left unfinished longer than `max_age_s` seconds ago."""
    removed = 0
    for path in folder.glob("*.tmp"):
        try:
            if time.time() - path.stat().st_mtime >= max_age_s:
                path.unlink()
                removed += 1
        except FileNotFoundError:  # its writer has just published it
            continue
    return removed


def _write_synced(data: bytes, path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
