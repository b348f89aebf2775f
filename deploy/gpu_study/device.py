"""The card: can torch compute on it, and how fast; else one sentence that says what is missing.

    python -m deploy.gpu_study.device --device cuda

Prints one JSON object: where the numbers come from (commit, machine, packages) and what was found.
A process of its own, because it needs torch, and because a broken driver may end it.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch

from mbrl.device import pick_device
from mbrl.errors import ConfigError
from mbrl.run.provenance import provenance

SIZE = {"cuda": 8192, "cpu": 512}
"""Rows of the square matrices whose product is timed."""


def driver() -> str | None:
    """Card and driver as `nvidia-smi` lists them; None where it is missing or fails."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def look(device: torch.device) -> dict[str, Any]:
    """What the device is and what it can do.

    Raises:
        ConfigError: a product of matrices on it is wrong.
    """
    found: dict[str, Any] = {"torch": str(torch.__version__), "cuda": torch.version.cuda}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        free, _ = torch.cuda.mem_get_info(device)
        found |= {
            "card": about.name,
            "memory_gb": round(about.total_memory / 2**30, 1),
            "free_gb": round(free / 2**30, 1),
            "driver": driver(),
            "bf16": torch.cuda.is_bf16_supported(),
        }
    found["matmul_error"] = product_error(device)
    if not found["matmul_error"] < 0.05:
        raise ConfigError(
            f"device: expected a product of bfloat16 matrices within 5 % of float64's, got an "
            f"error of {found['matmul_error']:.0%}; this card or its driver computes wrongly: "
            f"take another machine"
        )
    found["matmul_tflops"] = product_speed(device)
    return found


def product_error(device: torch.device) -> float:
    """Largest error of a bfloat16 product, in parts of the largest value."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = a @ b
    got = (a.to(device, torch.bfloat16) @ b.to(device, torch.bfloat16)).cpu().double()
    return float((got - exact).abs().max() / exact.abs().max())


def product_speed(device: torch.device) -> float:
    """Tera-operations per second of a bfloat16 product of square matrices."""
    size, times = SIZE[device.type], 10
    a = torch.randn(size, size, device=device).bfloat16()
    for count in (3, times):
        began = time.perf_counter()
        for _ in range(count):
            product = a @ a
        float(product[0, 0])  # waits for the device
        spent = time.perf_counter() - began
    return round(2 * size**3 * times / spent / 1e12, 3)


def why_not(error: Exception) -> str:
    """One sentence on a GPU that torch cannot use."""
    listed = driver()
    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} was built without CUDA"
    elif listed is None:
        reason = "nvidia-smi finds no driver or no card"
    else:
        reason = f"nvidia-smi lists {listed}, torch {torch.__version__} says: {error}"
    return (
        f"expected a GPU that torch can use, and {reason}; rent another machine, name another "
        f"interpreter (PYTHON=...), or rehearse without one: GPU_STUDY_ARGS='--device cpu'"
    )


def main() -> int:
    """Look, print JSON, or print one sentence and return 2."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    try:
        device = pick_device(parser.parse_args().device)
        found = look(device)
    except ConfigError as error:
        no_gpu = not torch.cuda.is_available()
        print(f"gpu-study: {why_not(error) if no_gpu else error}", file=sys.stderr)
        return 2
    except RuntimeError as error:  # what CUDA raises: no memory, no kernel for this card, ...
        first = str(error).strip().splitlines()[0]
        print(f"gpu-study: {why_not(RuntimeError(first))}", file=sys.stderr)
        return 2
    print(json.dumps({**provenance(), "device": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
