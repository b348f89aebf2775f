"""Wheels in pieces that travel: download and cut them here, join and check them there.

In `folder`: `wheels/` while pip downloads, then `pieces/` with their bytes laid end to end and cut
where a piece is full, and `manifest.json` with the name, size and SHA-256 of each wheel and piece.
So no file is larger than a transfer allows, and what arrives broken is found before it is used.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from deploy.gpu_study import ROOT, StudyError

LEFT_OUT = ("torch", "imageio-ffmpeg", "tensorboard")
"""Not packed: the machine brings the first, and a run without videos and viewer needs no other."""
FOR_TESTS = ("pytest", "pytest-timeout")
"""Of the developer's tools, those with which the tests that need a GPU can run there too."""
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(35, 4, -1)),
    *(f"manylinux{year}_x86_64" for year in (2014, 2010, 1)),
)
_BLOCK = 1 << 20


def requirements(pyproject: Path = ROOT / "pyproject.toml") -> list[str]:
    """What the project needs on the machine, as `pyproject.toml` says it."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    tools = [one for one in project["optional-dependencies"]["dev"] if _name(one) in FOR_TESTS]
    return [*(one for one in project["dependencies"] if _name(one) not in LEFT_OUT), *tools]


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()


def download(folder: Path, python: str) -> None:
    """Download all wheels for a version of Python ("3.12") on x86-64 Linux into `folder/wheels`.

    Raises:
        StudyError: pip found no wheel for something; pip's own words are on the terminal.
    """
    wheels = folder / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels)]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    command += [f"--platform={platform}" for platform in PLATFORMS]
    command += ["--constraint", str(ROOT / "constraints.txt"), *requirements()]
    if subprocess.run(command, check=False).returncode:
        raise StudyError(
            f"expected a wheel of every dependency for Python {python}, and pip could not bring "
            f"them all (see above); look at the network, or at the pins in constraints.txt"
        )


def split(folder: Path, piece_bytes: int, python: str, needed: Iterable[str]) -> dict[str, Any]:
    """Turn `folder/wheels` into `folder/pieces` of at most `piece_bytes`; returns the manifest.

    Raises:
        StudyError: there are no wheels, or a piece would have no room for anything.
    """
    wheels, pieces = sorted((folder / "wheels").glob("*.whl")), folder / "pieces"
    if not wheels or piece_bytes < 1:
        raise StudyError(
            f"expected wheels in {folder / 'wheels'} and pieces of a byte or more, got "
            f"{len(wheels)} wheels and {piece_bytes} bytes; run `make gpu-wheels`"
        )
    shutil.rmtree(pieces, ignore_errors=True)
    pieces.mkdir(parents=True)
    stream, left = _end_to_end(wheels), b""
    total = sum(wheel.stat().st_size for wheel in wheels)
    for number in range(-(-total // piece_bytes)):
        with (pieces / f"{number:03d}").open("wb") as out:
            left = _move(stream, left, out, piece_bytes)
    manifest = {
        "python": python,
        "requirements": list(needed),
        "wheels": [_entry(one) for one in wheels],
        "pieces": [_entry(one) for one in sorted(pieces.iterdir())],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    shutil.rmtree(folder / "wheels")
    return manifest


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The list of wheels and pieces.

    Raises:
        StudyError: it is not there, or not what `split` wrote.
    """
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names = [one["name"] for key in ("wheels", "pieces") for one in manifest[key]]
        manifest["python"], manifest["requirements"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"{path}: expected the list that `make gpu-wheels` writes ({error}); make it where "
            f"there is a network, and bring it here with the pieces"
        ) from error
    if strange := [name for name in names if not re.fullmatch(r"\w[\w.+-]*", name)]:
        raise StudyError(f"{path}: expected plain names of files, got {strange[0]!r}")
    return manifest


def join(folder: Path, manifest: dict[str, Any]) -> Path:
    """Check every piece and put the wheels together again; returns the folder they are in.

    Raises:
        StudyError: pieces are missing or differ from the manifest; nothing was written then.
    """
    pieces = folder / "pieces"
    missing = [one["name"] for one in manifest["pieces"] if not (pieces / one["name"]).exists()]
    if missing:
        raise StudyError(
            f"{pieces}: expected {len(manifest['pieces'])} pieces, {', '.join(missing)} not here; "
            f"bring them, one or a few at a time: those that came stay"
        )
    broken = [one["name"] for one in manifest["pieces"] if _entry(pieces / one["name"]) != one]
    if broken:
        raise StudyError(
            f"{pieces}: expected the bytes that manifest.json lists, got others in "
            f"{', '.join(broken)}; bring those again, or run `make gpu-wheels` and bring all"
        )
    wheels = folder / "joined"
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir()
    stream, left = _end_to_end(pieces / one["name"] for one in manifest["pieces"]), b""
    for wheel in manifest["wheels"]:
        with (wheels / wheel["name"]).open("wb") as out:
            left = _move(stream, left, out, wheel["bytes"])
        if _entry(wheels / wheel["name"]) != wheel:
            raise StudyError(
                f"{wheel['name']}: expected the bytes that manifest.json lists; its pieces are "
                f"whole, so the list is of others: run `make gpu-wheels` again and bring all"
            )
    return wheels


def _end_to_end(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block


def _move(stream: Iterator[bytes], left: bytes, out: BinaryIO, count: int) -> bytes:
    """Write `count` bytes, first those `left` of the last block; returns what is left then."""
    while count:
        block = left or next(stream, b"")
        if not block:
            break
        out.write(block[:count])
        left, count = block[count:], max(0, count - len(block))
    return left
