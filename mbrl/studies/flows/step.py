"""What training steps of one flow cost: seconds, memory, and communication.

    python -m mbrl.studies.flows.step '{"flow": {...}, "train": {...}, "shape": [1, 64, 64], ...}'

`run_steps` starts this program once for each rank and returns its JSON: seconds of every step by
the clock and of CPU, the largest resident memory, and, for several ranks, what communication costs.
A process does not give memory back, so steps have processes of their own. `others` says whether the
machine is idle enough for the clock to be trusted.

Ranks meet over gloo on the loopback device, through a file. Each has one thread. Gradients are
averaged while the backward pass goes on (DistributedDataParallel). The same step under `no_sync`
communicates nothing; both take turns, and the difference of two that follow each other is what
communication adds. `all_reduce_s` is the sum over ranks of one vector as long as all gradients.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from mbrl.config.base import Settings
from mbrl.errors import TrainingError
from mbrl.studies.flows.train import build, loss_of, optimizer_of
from mbrl.studies.flows.trial import FlowStudySettings
from mbrl.studies.trial import ONE_CORE

Way = Callable[[], contextlib.AbstractContextManager[None]]
"""Something that a step is taken inside of."""

WARM_UP = 1
"""Steps of each way before the clock runs: first calls allocate, and in the first step without sync
DistributedDataParallel still communicates, to settle the order of its buckets."""
TRUSTED = 0.5
"""Tasks of others, on average, up to which times of several ranks are worth quoting."""
PAUSE_S = 0.05
TIMEOUT_S = 1800.0
_LOADAVG = Path("/proc/loadavg")


class Order(Settings):
    """Which steps to take, on random images."""

    config: FlowStudySettings  # the flow, and how it is trained
    shape: tuple[int, int, int]  # (C, H, W)
    levels: int
    batch: int  # images of a step on each rank
    steps: int  # to be timed
    rank: int = 0  # of this process
    ranks: int = 1  # processes that share the gradient
    meeting: str = ""  # the file through which they meet


class Loss(nn.Module):
    """The flow of an order, whose forward pass is the loss: DistributedDataParallel wants that."""

    def __init__(self, order: Order) -> None:
        """Build the flow."""
        super().__init__()
        self.flow = build(order.shape, order.levels, order.config)
        self.bf16 = order.config.train.bf16

    def forward(self, batch: Tensor) -> Tensor:
        """Mean bits per dimension."""
        return loss_of(self.flow, batch, None, self.bf16)


def random_images(shape: tuple[int, int, int], levels: int, count: int) -> Tensor:
    """Images (count, C, H, W) of uniform levels, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(levels, (count, *shape), generator=generator).to(torch.uint8)


# -- memory ----------------------------------------------------------------------------------------


def saved_bytes(run: Callable[[], Tensor], exclude: Iterable[Tensor] = ()) -> int:
    """Bytes that the graph of `run()`, a loss, holds for its gradient: the same on every machine.

    Every storage counts once and whole, even if only a view of it is saved; those of the tensors in
    `exclude` do not count, and neither does memory that is allocated for a moment in between.
    """
    excluded = {_address(tensor) for tensor in exclude}
    sizes: dict[int, int] = {}
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        address = _address(tensor)
        if address not in excluded and address not in sizes:
            sizes[address] = tensor.untyped_storage().nbytes()
            held.append(tensor.detach())  # no other storage may get this address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        run()
    return sum(sizes.values())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def peak_rss_bytes() -> int:
    """The largest resident memory that this process has had.

    `ru_maxrss` of a process begins with that of the one that started it, so the kernel's own count
    of this program's memory is read where there is one (Linux: VmHWM).
    """
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="ascii").splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# -- other work on the machine ---------------------------------------------------------------------


def others(looks: int) -> float:
    """How many tasks of others want a core just now: the mean of `looks`, doing nothing between.

    Outside Linux it is the system's load average of the last minute, our own work included.
    """
    if not _LOADAVG.exists():
        return os.getloadavg()[0]
    counts = []
    for _ in range(looks):
        time.sleep(PAUSE_S)
        running = _LOADAVG.read_text(encoding="ascii").split()[3].partition("/")[0]
        counts.append(max(0, int(running) - 1))
    return sum(counts) / looks


# -- steps -----------------------------------------------------------------------------------------


def take(order: Order) -> dict[str, Any]:
    """Take the steps of an order in this process; all ranks together."""
    torch.manual_seed(0)
    module = Loss(order)
    batch = random_images(order.shape, order.levels, order.batch)
    module.flow.initialise(batch)
    wrapped, ways = shared(module, order.ranks)
    optimizer = optimizer_of(module, order.config.train)
    calls: dict[str, Callable[[], object]] = {
        f"{name}step": partial(step, wrapped, batch, optimizer, way) for name, way in ways.items()
    }
    found = _timed(calls, order.steps)
    if order.ranks > 1:
        vector = torch.zeros(sum(weight.numel() for weight in module.parameters()))
        found |= _timed({"all_reduce": partial(distributed.all_reduce, vector)}, order.steps)
    return {**found, "max_rss_bytes": peak_rss_bytes()}


def shared(module: nn.Module, ranks: int) -> tuple[nn.Module, dict[str, Way]]:
    """The module as so many ranks train it, and the ways to take a step of it.

    Its buffers are each rank's own, as in `mbrl.learn_model`: their broadcast would fall on the
    step after one that synchronised, which is one that should communicate nothing.
    """
    if ranks == 1:
        return module, {"": contextlib.nullcontext}
    wrapped = nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)
    return wrapped, {"": contextlib.nullcontext, "no_sync_": wrapped.no_sync}


def step(module: nn.Module, batch: Tensor, optimizer: torch.optim.Optimizer, way: Way) -> None:
    """One update, forward to optimizer, inside of a way."""
    with way():
        optimizer.zero_grad(set_to_none=True)
        module(batch).backward()
        optimizer.step()


def _timed(calls: Mapping[str, Callable[[], object]], count: int) -> dict[str, Any]:
    """Seconds of each call, by the clock and of CPU; they take turns on the same machine load."""
    found: dict[str, Any] = {}
    for turn in range(WARM_UP + count):
        for name, call in calls.items():
            if distributed.is_initialized():
                distributed.barrier()
            began = time.perf_counter(), time.process_time()
            call()
            if turn >= WARM_UP:
                found.setdefault(f"{name}_s", []).append(time.perf_counter() - began[0])
                found.setdefault(f"{name}_cpu_s", []).append(time.process_time() - began[1])
    return found


def run_steps(order: Order) -> list[dict[str, Any]]:
    """Take steps in fresh processes, one for each rank; what each of them found.

    Raises:
        TrainingError: a process failed, with the last line it printed.
    """
    home = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **ONE_CORE, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path}
    command = [sys.executable, "-m", "mbrl.studies.flows.step"]
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(order.ranks):
                one = order.model_copy(update={"rank": rank, "meeting": f"{folder}/meeting"})
                processes.append(
                    subprocess.Popen(
                        [*command, one.model_dump_json()],
                        env=environment,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                    )
                )
            printed = [process.communicate(timeout=TIMEOUT_S) for process in processes]
        finally:
            for process in processes:
                process.kill()
    for process, (_, errors) in zip(processes, printed, strict=True):
        if process.returncode != 0:
            last = " ".join(errors.strip().splitlines()[-1:])
            raise TrainingError(f"expected {order.steps} training steps, got an error: {last}")
    return [json.loads(output.strip().splitlines()[-1]) for output, _ in printed]


def main(order: Order) -> None:
    """Take the steps of an order, and print what was found."""
    torch.set_num_threads(1)
    if order.ranks > 1:
        distributed.init_process_group(
            "gloo", f"file://{order.meeting}", rank=order.rank, world_size=order.ranks
        )
    try:
        print(json.dumps(take(order)), flush=True)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


if __name__ == "__main__":
    main(Order.model_validate_json(sys.argv[1]))
    # at once: gloo's threads may abort a process that ends the usual way (pytorch issue 190489)
    os._exit(0)
