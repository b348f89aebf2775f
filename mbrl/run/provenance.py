"""Where a number came from: commit, package versions, machine.

Goes into every run folder and every results file, so that a figure can be traced and repeated. It
describes the kind of machine and never names it: no host name, user or path leaves this module.
"""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbrl.cluster import available_cores

if TYPE_CHECKING:
    import torch

_HOME = Path(__file__).resolve().parents[2]
_CODE = ("mbrl", "agents", "envs", "configs", "pyproject.toml", "constraints.txt")
_MAIN_PACKAGES = ("torch", "ray", "gymnasium", "numpy", "pyarrow", "ale-py", "minatar")


def _git(home: Path, *arguments: str) -> str | None:
    """Output of a git command, or None where there is no git or no repository."""
    command = ["git", "-C", str(home), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit(home: Path = _HOME) -> str:
    """The commit of the code that is running.

    The full hash, with "-dirty" behind it if a file that decides what runs differs from the commit.
    Where the code is no repository, as in the working directory of a Ray job, it is the variable
    `MBRL_COMMIT`, or else "unknown".
    """
    top = _git(home, "rev-parse", "--show-toplevel")
    head = _git(home, "rev-parse", "HEAD")
    # A virtual environment may lie inside somebody else's repository.
    if top is None or head is None or Path(top).resolve() != home.resolve():
        return os.environ.get("MBRL_COMMIT", "unknown")
    present = [name for name in _CODE if (home / name).exists()]
    return f"{head}-dirty" if _git(home, "status", "--porcelain", "--", *present) else head


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine(device: "torch.device | None" = None) -> dict[str, Any]:
    """Kind of machine: CPU, cores this process may use, memory, GPUs, system, Python.

    If `device` is a GPU, its name (`card`) and the version of torch that runs there are in it too.
    """
    import torch

    from agents.numerics import has_bfloat16

    ram_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    of_gpu = {}
    if device is not None and device.type == "cuda":
        of_gpu = {"card": torch.cuda.get_device_name(device), "torch": str(torch.__version__)}
    return {
        "cpu": _cpu_model(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": has_bfloat16(torch.device("cpu")),
        "cores": available_cores(),
        "ram_gb": round(ram_bytes / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **of_gpu,
    }


def provenance() -> dict[str, Any]:
    """`commit`, `machine` and the versions of the `packages` that matter most, ready for JSON."""
    versions = {one.metadata["Name"].lower(): one.version for one in metadata.distributions()}
    packages = {name: versions[name] for name in _MAIN_PACKAGES if name in versions}
    return {"commit": commit(), "machine": machine(), "packages": packages}
