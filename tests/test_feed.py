"""Batches ahead of a device: the same ones, in the same order, one early."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_learn_model import episode, equal, make_learner

from benchmarks.launches import count
from mbrl import feed as feed_module
from mbrl import learn_model
from mbrl.episode import SequenceBatch
from mbrl.errors import ReplayError
from mbrl.feed import feed
from mbrl.replay import ReplayStore

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")


def numbered() -> tuple[list[int], Callable[[], SequenceBatch]]:
    """A source of batches with 0, 1, 2, ... time steps, and how many were drawn."""
    drawn: list[int] = []

    def sample() -> SequenceBatch:
        drawn.append(len(drawn))
        flags = np.zeros((1, drawn[-1]), np.bool_)
        rewards, frames = flags.astype(np.float32), flags[..., None].astype(np.uint8)
        return SequenceBatch(
            obs=frames, prev_action=rewards, reward=rewards, terminated=flags, is_first=flags
        )

    return drawn, sample


def test_on_a_cpu_a_batch_is_drawn_when_it_is_asked_for() -> None:
    drawn, sample = numbered()
    lengths = []
    for batch in feed(sample, 3, CPU):
        assert isinstance(batch.obs, np.ndarray) and len(drawn) == len(lengths) + 1
        lengths.append(batch.shape[1])
    assert lengths == [0, 1, 2]


def test_elsewhere_the_next_batch_is_fetched_while_one_is_at_work() -> None:
    drawn, sample = numbered()
    second = threading.Event()

    def watched() -> SequenceBatch:
        batch = sample()
        if len(drawn) == 2:
            second.set()
        return batch

    batches = feed(watched, 3, ELSEWHERE)
    first = next(batches)
    assert isinstance(first.obs, torch.Tensor) and first.obs.device == ELSEWHERE
    assert first.obs.dtype == torch.uint8 and first.is_first.dtype == torch.bool
    assert second.wait(10)  # though nobody has asked for it
    assert [batch.shape[1] for batch in batches] == [1, 2]
    assert drawn == [0, 1, 2]  # and no fourth, which a resumed run would miss
    assert list(feed(sample, 0, ELSEWHERE)) == []


def test_an_error_of_the_source_reaches_who_asks() -> None:
    def sample() -> SequenceBatch:
        raise ReplayError("no rows")

    with pytest.raises(ReplayError, match="no rows"):
        list(feed(sample, 2, ELSEWHERE))


def test_learning_is_the_same_with_batches_fetched_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ReplayStore(tmp_path, env_id="x")
    store.commit([episode("1"), episode("2")], "c0", 38)
    one, other = make_learner(store), make_learner(store)
    expected, starts = one.learn(4)
    monkeypatch.setattr(feed_module, "sent", lambda batch, device: batch)
    monkeypatch.setattr(learn_model, "feed", lambda sample, n, device: feed(sample, n, ELSEWHERE))
    got, other_starts = other.learn(4)
    assert got == expected and equal(one.model_state(), other.model_state())
    assert torch.equal(starts.hidden, other_starts.hidden)
    assert one.streams()["rng"] == other.streams()["rng"]


def test_ops_that_compute_are_counted_backwards_too_and_views_are_not() -> None:
    a = torch.ones(3, 2, requires_grad=True)
    assert count(lambda: torch.ones(2).view(1, 2).T, CPU) == 1
    assert count(lambda: (a.T * 2).exp(), CPU) == 2
    assert count(lambda: (a * 2).sum().backward(), CPU) == 4  # mul, sum, ones to start from, mul
