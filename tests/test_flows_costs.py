"""Costs of flows: what is counted, what is timed, and what ranks exchange."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flow_trials import make_trial, write_images, write_trial
from torch import distributed

from mbrl.errors import TrainingError
from mbrl.studies.flows import cost
from mbrl.studies.flows.images import Source, load_images
from mbrl.studies.flows.step import Loss, Order, peak_rss_bytes, run_steps, shared, step
from mbrl.studies.flows.study import STUDY
from mbrl.studies.flows.train import optimizer_of
from mbrl.studies.flows.trial import FlowStudySettings


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(path=write_images(tmp_path / "some.npz"))


def tiny_order(scales: int = 2, **changes: Any) -> Order:
    flow = {"scales": scales, "steps": 2, "width": 4}
    config = FlowStudySettings.model_validate({"flow": flow})
    given: dict[str, Any] = {"config": config, "shape": (1, 8, 8), "levels": 32, "batch": 2}
    return Order(**{**given, "steps": 1, **changes})


def take_steps_on_a_rank(rank: int, order: Order, names: list[str], folder: Path) -> None:
    """Write, for every step, the weights afterwards, hashed, and gloo's calls."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    module = Loss(order)
    batch = torch.full((order.batch, *order.shape), 7 + 9 * rank, dtype=torch.uint8)
    module.flow.initialise(batch)
    wrapped, ways = shared(module, 2)
    optimizer = optimizer_of(module, order.config.train)
    steps = []
    for name in names:
        distributed.barrier()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            step(wrapped, batch, optimizer, ways[name])
        weights = torch.cat([weight.detach().flatten() for weight in module.parameters()])
        calls = [one.key for one in profile.key_averages() if one.key.startswith("gloo:")]
        steps.append([hashlib.sha256(weights.numpy().tobytes()).hexdigest(), calls])
    distributed.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(steps))
    os._exit(0)  # gloo's threads may abort a process that ends the usual way


@pytest.mark.timeout(300)
def test_ranks_stay_equal_by_synchronising_and_communicate_nothing_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("KINETO_LOG_LEVEL", "5")
    # the second step settles the order of buckets; from then on only gradients are exchanged
    sync, alone = "", "no_sync_"
    names = [sync, sync, sync, alone, sync, alone]
    torch.multiprocessing.spawn(take_steps_on_a_rank, (tiny_order(), names, tmp_path), nprocs=2)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    found = list(zip(*ranks, strict=True))
    for one, other in found[:3]:
        assert one[0] == other[0]  # of different images, the same weights
    assert len({one[0] for one, _ in found}) == 6  # and every step changed them
    for one, other in (found[3], found[5]):
        assert one[1] == other[1] == [] and one[0] != other[0]
    for one, other in (found[2], found[4]):
        assert one[1] == other[1] == ["gloo:all_reduce"]


@pytest.mark.timeout(300)
def test_two_ranks_time_steps_with_and_without_communication_in_turns() -> None:
    found = run_steps(tiny_order(ranks=2, steps=3))
    assert len(found) == 2
    for one in found:
        for name in ("step_s", "step_cpu_s", "no_sync_step_s", "all_reduce_s"):
            assert len(one[name]) == 3 and min(one[name]) > 0
        assert one["max_rss_bytes"] > 2**20


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(TrainingError, match=r"expected 1 training steps, got an error: .*scales"):
        run_steps(tiny_order(scales=9))


def test_resident_memory_is_at_least_what_was_just_filled() -> None:
    before = peak_rss_bytes()
    held = np.ones(before // 8 + 2**23)
    assert peak_rss_bytes() >= held.nbytes


def test_costs_are_counted_by_arm(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process(order: Order) -> list[dict[str, Any]]:
        # the machine gets slower and slower; at every step the slowest rank counts
        first = {"step_s": [0.2, 0.5, 1.0], "no_sync_step_s": [0.1, 0.2, 0.3]}
        second = {"step_s": [0.3, 0.4, 0.9], "no_sync_step_s": [0.1, 0.3, 0.9]}
        flow = order.config.flow
        grown = 1e6 * (1 + cost.MODES.index(flow.memory)) * (1 if flow.sharing == "none" else 0.1)
        if order.batch == 1 and flow.memory == "reversible":  # what every process needs
            grown = 0
        more = {"all_reduce_s": [0.2, 0.1, 0.6], "step_cpu_s": [0.5], "max_rss_bytes": 5e6 + grown}
        return [{**first, **more}, {**second, **more}][: order.ranks]

    monkeypatch.setattr(cost, "run_steps", no_process)
    monkeypatch.setattr(cost, "others", lambda _: 0.25)
    trials = [make_trial(source, tmp_path, arm=arm) for arm in ("none", "level")]
    for trial in trials:
        write_trial(trial, {"bits_per_dim": 1.0}, digest=load_images(source).digest)
        assert not cost.is_done(trial)
        cost.run(trial)
        assert cost.is_done(trial)
    summary = STUDY.aggregate("some", tmp_path / "results")
    none, level = (summary["costs"][arm] for arm in ("none", "level"))
    assert level["parameters"] < none["parameters"]
    assert level["checkpoint_bytes"] < none["checkpoint_bytes"]
    assert none["saved_bytes"]["reversible"] < none["saved_bytes"]["plain"]
    plain = none["saved_by_steps"]["plain"]
    assert plain["4"] > plain["2"]
    assert none["training_bytes"]["plain"] == 16 * none["parameters"] + none["saved_bytes"]["plain"]
    assert none["peak_rss_bytes"] == {"plain": 1e6, "checkpoint": 2e6, "reversible": 3e6}
    assert level["buffer_bytes"] == none["buffer_bytes"] > 4 * 32 * 8 * 8
    two = none["ranks"]["2"]
    assert two["all_reduce_bytes"] == 4 * none["parameters"] and two["peak_rss_bytes"] == 1e6
    assert two["communication_ms"] == pytest.approx(200)  # the median of 200, 200 and 100
    assert two["step_ms"] == pytest.approx(500) and two["no_sync_ms"] == pytest.approx(300)
    assert two["all_reduce_ms"] == pytest.approx(200)
    assert two["load_before"] == 0.25
    arms = summary["arms"]
    assert arms["level"]["parameter_ratio"] == 1  # of the results, which say 100 for both
    assert arms["level"]["saved_bytes"] == level["saved_bytes"]
    assert arms["none"]["step_ms"] == {"1": 500.0, "2": 500.0}


def test_a_checkpoint_holds_shared_weights_once_and_its_buffers_are_counted_apart() -> None:
    one = torch.nn.Linear(4, 4, bias=False)
    assert cost.parameters(torch.nn.Sequential(one, one)) == 16
    once, twice = (cost.checkpoint_bytes(torch.nn.Sequential(*[one] * n)) for n in (1, 2))
    assert once == twice >= 64
    one.register_buffer("marginal", torch.zeros(10, dtype=torch.float64))
    one.register_buffer("passing", torch.zeros(99), persistent=False)
    assert cost.checkpoint_bytes(one) == once
    assert cost.buffer_bytes(torch.nn.Sequential(one, one)) == 80
