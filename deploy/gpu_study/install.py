"""An environment on the rented machine: the joined wheels, beside the torch that is there.

The environment is made without pip of its own, since a bare system may lack the part of Python
that would put it there: the pip of the interpreter that runs this installs from outside. It sees
that interpreter's torch, and everything else comes from the wheels, in the versions that Reverie
was tested with.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deploy.gpu_study import ROOT, StudyError
from deploy.gpu_study.wheels import join, read_manifest


def install(folder: Path) -> Path:
    """The environment's Python; made anew only if the manifest is another than last time.

    Raises:
        StudyError: another version of Python, missing or broken pieces, no torch, or no pip.
    """
    manifest = read_manifest(folder)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if manifest["python"] != here:
        raise StudyError(
            f"expected Python {manifest['python']}, which the wheels are for, got {here}; name "
            f"another one (make gpu-study PYTHON=python{manifest['python']}), or bring wheels for "
            f"this one (make gpu-wheels GPU_WHEELS_ARGS='--python-version {here}')"
        )
    venv, ready = folder / "venv", folder / "venv" / "installed"
    python, mark = venv / "bin" / "python", _mark(manifest)
    if ready.exists() and ready.read_text() == mark:
        return python
    wheels = join(folder, manifest)
    shutil.rmtree(venv, ignore_errors=True)
    new = [sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", str(venv)]
    _run(new, "an environment", "look at the messages above")
    _show(venv, python)
    pip = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check"]
    command = [*pip, "--python", str(python), "install", "--quiet", "--no-index"]
    command += ["--find-links", str(wheels), "--ignore-installed", "--no-compile", "--no-cache-dir"]
    command += ["--no-warn-conflicts"]  # with what the machine has: nothing of it is used
    command += ["--constraint", str(ROOT / "constraints.txt"), *manifest["requirements"]]
    _run(command, "pip (22.3 or newer) to install the wheels", "run `make gpu-wheels` anew")
    shutil.rmtree(wheels)
    ready.write_text(mark)
    return python


def _mark(manifest: dict[str, Any]) -> str:
    """What an environment was made from."""
    return hashlib.sha256(json.dumps([manifest, str(ROOT)]).encode()).hexdigest()


def _run(command: list[str], wanted: str, way_out: str) -> None:
    environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
    if code := subprocess.run(command, env=environment, check=False).returncode:
        raise StudyError(f"expected {wanted}, it ended with exit code {code}; {way_out}")


def _show(venv: Path, python: Path) -> None:
    """Let the environment find this checkout, and torch where the system's packages lack it.

    They do if the interpreter with torch lies in an environment itself: then its folder is named,
    behind everything that is installed in the new one.

    Raises:
        StudyError: this interpreter has no torch.
    """
    site = venv / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    folders = [str(ROOT)]
    probe = "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"
    if subprocess.run([str(python), "-c", probe], check=False).returncode:
        torch = find_spec("torch")
        if torch is None or torch.origin is None:
            raise StudyError(
                f"expected PyTorch in {sys.executable}, found none; name an interpreter that has "
                f"it (make gpu-study PYTHON=/path/to/python3)"
            )
        folders.append(str(Path(torch.origin).parents[1]))
    (site / "reverie.pth").write_text("".join(f"{one}\n" for one in folders))
