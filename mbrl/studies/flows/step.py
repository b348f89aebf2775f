"""Training steps of one flow in a process of its own, to be timed and weighed from outside.

    python -m mbrl.studies.flows.step '{"flow": {...}, "train": {...}, "shape": [1, 64, 64], ...}'

Prints one JSON object: seconds of every step by the clock and of CPU, the process's largest
resident memory, and, for several ranks, what their communication costs. A process of its own,
because memory that was once asked for stays with a process, and because ranks are processes.

Ranks meet over gloo on the loopback device, through a file. Each has one thread. A step there is
DistributedDataParallel's: gradients are averaged while the backward pass goes on. The same step
under `no_sync` communicates nothing; both take turns, and the difference of two that follow each
other is what communication adds. `all_reduce_s` is the sum over ranks of one vector as long as all
gradients, alone.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, distributed, nn

from mbrl.errors import TrainingError
from mbrl.studies.flows.settings import FlowStudySettings
from mbrl.studies.trial import ONE_CORE

Way = Callable[[], contextlib.AbstractContextManager[None]]
"""Something that a step is taken inside of."""

WARM_UP = 1
"""Steps of each way before the clock runs: first calls allocate, and the first step that does not
synchronise still talks, since DistributedDataParallel then settles the order of its buckets."""


class Order(BaseModel):
    """What to do.

    Attributes:
        config: the flow, and how it is trained.
        shape: (C, H, W) of the images, which are random.
        levels: V.
        batch: images of a step on each rank.
        steps: to be timed.
        rank: of this process.
        ranks: processes that share the gradient.
        meeting: the file through which they meet.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: FlowStudySettings
    shape: tuple[int, int, int]
    levels: int
    batch: int
    steps: int
    rank: int = 0
    ranks: int = 1
    meeting: str = ""


class Loss(nn.Module):
    """A flow whose forward pass is the loss, as DistributedDataParallel wants it."""

    def __init__(self, order: Order) -> None:
        """Build the flow of an order."""
        from mbrl.studies.flows.train import build

        super().__init__()
        self.flow = build(order.shape, order.levels, order.config)
        self.bf16 = order.config.train.bf16

    def forward(self, batch: Tensor) -> Tensor:
        """Mean bits per dimension."""
        from mbrl.studies.flows.train import loss_of

        return loss_of(self.flow, batch, None, self.bf16)


def random_images(shape: tuple[int, int, int], levels: int, count: int) -> Tensor:
    """Images (count, C, H, W) of uniform levels, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(levels, (count, *shape), generator=generator).to(torch.uint8)


def take(order: Order) -> dict[str, Any]:
    """Take the steps of an order in this process; all ranks together."""
    from mbrl.studies.flows.train import optimizer_of

    torch.manual_seed(0)
    module = Loss(order)
    batch = random_images(order.shape, order.levels, order.batch)
    module.flow.initialise(batch)
    wrapped, ways = shared(module, order.ranks)
    optimizer = optimizer_of(module, order.config.train)
    found: dict[str, Any] = _timed(wrapped, batch, optimizer, order.steps, ways)
    if order.ranks > 1:
        found["all_reduce_s"] = _all_reduce(module, order.steps)
    found["max_rss_bytes"] = peak_rss_bytes()
    return found


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


def peak_rss_bytes() -> int:
    """The largest resident memory that this process has had.

    `ru_maxrss` of a process begins with that of the one that started it, so the kernel's own count
    of this program's memory is read where there is one (Linux: VmHWM).
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _timed(
    module: nn.Module,
    batch: Tensor,
    optimizer: torch.optim.Optimizer,
    steps: int,
    ways: Mapping[str, Way],
) -> dict[str, list[float]]:
    """Seconds of each step, by the clock and of CPU; ways take turns, so that all fare alike."""
    found: dict[str, list[float]] = {}
    for turn in range(WARM_UP + steps):
        for name, way in ways.items():
            if distributed.is_initialized():
                distributed.barrier()
            began = time.perf_counter(), time.process_time()
            step(module, batch, optimizer, way)
            if turn >= WARM_UP:
                found.setdefault(f"{name}step_s", []).append(time.perf_counter() - began[0])
                found.setdefault(f"{name}step_cpu_s", []).append(time.process_time() - began[1])
    return found


def _all_reduce(module: nn.Module, times: int) -> list[float]:
    """Seconds of each sum over ranks of a vector as long as all gradients."""
    vector = torch.zeros(sum(weight.numel() for weight in module.parameters()))
    taken = []
    for _ in range(WARM_UP + times):
        distributed.barrier()
        began = time.perf_counter()
        distributed.all_reduce(vector)
        taken.append(time.perf_counter() - began)
    return taken[WARM_UP:]


def run_steps(order: Order, timeout_s: float = 1800.0) -> list[dict[str, Any]]:
    """Take steps in fresh processes, one for each rank; what each of them found.

    Raises:
        TrainingError: a process failed, with what it said last.
    """
    with tempfile.TemporaryDirectory() as folder:
        orders = [
            order.model_copy(update={"rank": rank, "meeting": str(Path(folder) / "meeting")})
            for rank in range(order.ranks)
        ]
        home = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, **ONE_CORE, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path}
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "mbrl.studies.flows.step", one.model_dump_json()],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for one in orders
        ]
        try:
            said = [process.communicate(timeout=timeout_s) for process in processes]
        finally:
            for process in processes:
                process.kill()
    for process, (_, errors) in zip(processes, said, strict=True):
        if process.returncode != 0:
            last = " ".join(errors.strip().splitlines()[-1:])
            raise TrainingError(f"expected {order.steps} training steps, got an error: {last}")
    return [json.loads(output.strip().splitlines()[-1]) for output, _ in said]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    order = Order.model_validate_json(given[0])
    torch.set_num_threads(1)
    if order.ranks > 1:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{order.meeting}",
            rank=order.rank,
            world_size=order.ranks,
        )
    try:
        print(json.dumps(take(order)))
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # all is said: gloo's threads may abort a process that ends the usual way (pytorch issue 190489)
    os._exit(code)
