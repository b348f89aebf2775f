"""How many pieces of work a device is given: what bounds small models on a GPU.

On a GPU these are kernel launches (a graph counts as one). On a CPU nothing is launched: ATen ops
that compute are counted instead, which is about what a GPU would be given.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
_NO_WORK = ("aten::empty", "aten::detach", "aten::lift_fresh", "aten::_local_scalar_dense")
UNIT = {"cuda": "launches", "cpu": "ATen ops"}
"""What `count` counts, by the kind of device."""


class _Ops(TorchDispatchMode):
    """Counts the ops below autograd, backward passes included, that are more than a view."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or func.name().startswith(_NO_WORK))
        return func(*args, **(kwargs or {}))


def count(work: Callable[[], object], device: torch.device) -> int:
    """Launches of `work` on a GPU, ATen ops on a CPU."""
    if device.type != "cuda":
        with _Ops() as ops:
            work()
        return ops.count
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize(device)
    return sum(event.name.startswith(_LAUNCHES) for event in seen.events() or [])
