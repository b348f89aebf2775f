"""Action heads: scaling to the space, and agreement with torch's own distributions."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical, Distribution, Independent, Normal

from agents.heads import CategoricalHead, GaussianHead, make_head

GEARS = spaces.Discrete(3, start=-1)
STEER = spaces.Box(np.array([0.0, -2.0], np.float32), np.array([1.0, 4.0], np.float32))


def categorical(logits: torch.Tensor) -> Distribution:
    return Categorical(logits=logits)


def diagonal(inputs: torch.Tensor) -> Distribution:
    normal = Normal(inputs[:, :2], inputs[:, 2:].exp())
    return Independent(normal, 1)


@pytest.mark.parametrize(
    ("space", "reference"),
    [(spaces.Discrete(4), categorical), (spaces.Box(-1, 1, (2,), np.float32), diagonal)],
)
def test_heads_agree_with_torch(space: spaces.Space[Any], reference: Any) -> None:
    head, inputs = make_head(space), torch.randn(6, 4).clamp(-2, 0.5)
    action = head.sample(inputs, head.noise((6,), None))
    expected = reference(inputs)
    assert torch.allclose(head.log_prob(inputs, action), expected.log_prob(action), atol=1e-5)
    assert torch.allclose(head.entropy(inputs), expected.entropy(), atol=1e-5)
    assert torch.equal(head.mode(inputs), expected.mode)


def test_a_single_choice_is_taken_whatever_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.rand` gives exactly 0 now and then."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.zeros(shape))
    head = make_head(spaces.MultiDiscrete([1, 3]))
    noise = head.noise((5,), None)
    assert noise.isfinite().all()
    assert head.sample(torch.zeros(5, 4), noise)[:, 0].tolist() == [0] * 5


def test_the_parts_of_a_mixture_are_independent_so_that_log_probabilities_add_up() -> None:
    space = spaces.Dict(gear=GEARS, keys=spaces.MultiDiscrete([2, 4]), steer=STEER)
    head, inputs = make_head(space), torch.randn(5, 3 + 6 + 4).clamp(-2, 0.5)
    action = head.sample(inputs, head.noise((5,), torch.Generator().manual_seed(0)))
    parts = [
        (Categorical(logits=inputs[:, :3]), action[:, 0]),
        (Categorical(logits=inputs[:, 3:5]), action[:, 1]),
        (Categorical(logits=inputs[:, 5:9]), action[:, 2]),
        (diagonal(inputs[:, 9:]), action[:, 3:]),
    ]
    log_prob: Any = sum(part.log_prob(drawn) for part, drawn in parts)
    entropy: Any = sum(part.entropy() for part, _ in parts)
    assert torch.allclose(head.log_prob(inputs, action), log_prob, atol=1e-5)
    assert torch.allclose(head.entropy(inputs), entropy, atol=1e-5)
    mode = head.to_env(head.mode(inputs))
    assert torch.equal(mode[:, 0], inputs[:, :3].argmax(-1) - 1.0)
    assert torch.equal(mode[:, 2], inputs[:, 5:9].argmax(-1).double())


@pytest.mark.parametrize(
    ("space", "p"),
    [
        (spaces.Discrete(3), [0.1, 0.3, 0.6]),
        (spaces.MultiDiscrete([3]), [0.1, 0.3, 0.6]),
    ],
)
def test_choices_are_sampled_with_the_probabilities_they_are_given(
    space: spaces.Space[Any], p: list[float]
) -> None:
    head = make_head(space)
    noise = head.noise((20_000,), torch.Generator().manual_seed(0))
    drawn = head.sample(torch.tensor(p).log().expand(20_000, 3), noise).flatten()
    share = torch.bincount(drawn, minlength=3) / 20_000
    assert torch.allclose(share, torch.tensor(p), atol=0.015)


def test_gaussian_head_clips_and_stretches_to_the_bounds() -> None:
    got = GaussianHead(STEER).to_env(torch.tensor([[-5.0, 0.0], [0.5, 9.0]]))
    assert torch.allclose(got, torch.tensor([[0.0, 1.0], [0.75, 4.0]]))


def test_whole_numbers_have_equal_shares_of_the_range() -> None:
    head = GaussianHead(spaces.Box(-1, 2, (1,), np.int16))
    raw = torch.tensor([[-9.0], [-0.6], [-0.4], [0.1], [0.4], [0.6], [9.0]])
    assert head.to_env(raw).tolist() == [[-1], [-1], [0], [1], [1], [2], [2]]
    assert head.to_env(raw).dtype == torch.int64


@pytest.mark.parametrize(
    ("space", "shape", "dtype"),
    [
        (GEARS, (7,), torch.int64),
        (spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[0, 5], [-1, 0]]), (7, 2, 2), torch.int64),
        (spaces.MultiBinary([2, 3]), (7, 2, 3), torch.int64),
        (spaces.Box(-1, 1, (2, 2)), (7, 2, 2), torch.float32),
        (spaces.Box(-1, 1, ()), (7,), torch.float32),
        (spaces.Tuple([GEARS, spaces.Dict(b=STEER)]), (7, 3), torch.float64),
    ],
)
def test_actions_come_as_the_environment_counts_them(
    space: spaces.Space[Any], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    head = make_head(space)
    inputs = torch.randn(7, head.inputs)
    action = head.to_env(head.sample(inputs, head.noise((7,), None)))
    assert (action.shape, action.dtype) == (shape, dtype)


def test_a_single_action_is_always_taken() -> None:
    head = CategoricalHead(spaces.Discrete(1, start=4))
    action = head.sample(torch.randn(3, 1), head.noise((3,), None))
    assert head.to_env(action).tolist() == [4, 4, 4]
    assert head.log_prob(torch.randn(3, 1), action).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(-np.inf, np.inf, (1,)), "finite bounds"),
        (spaces.Text(3), "expected actions of Discrete"),
        (spaces.Dict(say=spaces.Text(3)), "expected actions of Discrete"),
    ],
)
def test_action_spaces_without_a_head_are_refused(space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_head(space)
