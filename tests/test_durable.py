"""Files that are whole whatever happens, and folders with one writer; see also test_store.py."""

import os
from pathlib import Path

import pytest

from mbrl.errors import DiskError, MbrlError
from mbrl.run.durable import lock_folder, write_atomically


def test_a_file_is_written_with_its_folder_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for content in ("λ first", b"second"):
        write_atomically(path, content)
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DiskError, match="free disk space"):
        patch.setattr(os, call, full)
        write_atomically(path, "after")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "before")]


def test_a_folder_is_for_one_process_until_it_is_unlocked(tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(MbrlError, match="another process holds it"):
        lock_folder(tmp_path)
    lock_folder(tmp_path).close()
