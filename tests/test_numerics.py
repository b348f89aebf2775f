"""Precision is granted, never imitated; random streams go on; scalars become two hot bins."""

import json
import math

import pytest
import torch
from torch import nn

from agents import numerics
from agents.numerics import (
    symexp,
    symlog,
    symlog_bins,
    two_hot_cross_entropy,
    two_hot_mean,
    widened,
)
from mbrl.run import provenance

CPU = torch.device("cpu")


@pytest.fixture
def instructions(monkeypatch: pytest.MonkeyPatch):
    """Says which instructions the processor has."""

    def have(**known: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)

    return have


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False}, False),  # AMD Zen 3
        ({"avx512_f": True, "avx512_bf16": True}, True),  # AMD Zen 4
        ({"amx_bf16": True}, True),  # Intel Sapphire Rapids
        ({"neon": True, "bf16": True}, True),  # ARM Neoverse V1
    ],
)
def test_a_processor_has_bfloat16_only_by_its_own_instructions(instructions, known, expected):
    instructions(**known)
    assert numerics.has_bfloat16(CPU) is expected
    net, x = nn.Linear(2, 2), torch.ones(1, 2)
    for wanted in (False, True):
        dtype = torch.bfloat16 if wanted and expected else torch.float32
        assert numerics.precision(CPU, wanted) == dtype
        with numerics.autocast(CPU, wanted):
            assert net(x).dtype == dtype


def test_a_device_of_unknown_kind_computes_in_float32():
    meta = torch.device("meta")
    assert not numerics.has_bfloat16(meta)
    with numerics.autocast(meta, True):
        assert nn.Linear(2, 2, device=meta)(torch.ones(1, 2, device=meta)).dtype == torch.float32


def test_every_result_says_whether_its_machine_has_bfloat16(instructions):
    for has in (True, False):
        instructions(avx512_bf16=has)
        machine = json.loads(json.dumps(provenance.machine()))
        assert machine["bfloat16"] is has
        assert machine["vectors"] == torch.backends.cpu.get_cpu_capability()


# Random streams


def drawn(state: torch.Tensor, began: int = 0) -> list[float]:
    generator = torch.Generator().manual_seed(began)
    numerics.restore_generator(generator, state)
    return torch.rand(3, generator=generator).tolist()


def test_a_stream_goes_on_exactly() -> None:
    generator = torch.Generator().manual_seed(5)
    torch.rand(2, generator=generator)
    state = generator.get_state()
    expected = torch.rand(3, generator=generator).tolist()
    assert drawn(state) == expected


def test_a_stream_of_another_device_begins_anew_and_follows_from_its_state_alone() -> None:
    # As a GPU's generator has it: a seed and an offset of eight bytes each.
    one, other = (torch.tensor([7, offset]).view(torch.uint8) for offset in (3, 4))
    assert drawn(one, began=1) == drawn(one, began=2)
    assert drawn(one) != drawn(other)


# Scalars


def test_symlog_by_hand_and_symexp_undoes_it() -> None:
    values = torch.tensor([0.0, math.e - 1, 1 - math.e, 99.0])
    torch.testing.assert_close(symlog(values), torch.tensor([0.0, 1.0, -1.0, math.log(100)]))
    torch.testing.assert_close(symexp(symlog(values)), values, rtol=1e-5, atol=1e-5)


def test_bins_are_symmetric_and_hold_zero() -> None:
    expected = [-(math.e**2) + 1, -math.e + 1, 0.0, math.e - 1, math.e**2 - 1]
    assert symlog_bins(5, math.e**2 - 1).tolist() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="odd number"):
        symlog_bins(4, 10.0)


@pytest.mark.parametrize(
    ("target", "weights"),
    [
        ((math.e - 1) / 4, [0, 0, 0.75, 0.25, 0]),
        ((1 - math.e) / 4, [0, 0.25, 0.75, 0, 0]),
        (math.e - 1 + (math.e**2 - math.e) / 3, [0, 0, 0, 2 / 3, 1 / 3]),
        (math.e - 1, [0, 0, 0, 1, 0]),
        (1e9, [0, 0, 0, 0, 1]),  # clamped to the outermost bin
        (-1e9, [1, 0, 0, 0, 0]),
    ],
)
def test_a_scalar_lies_on_its_two_bins(target: float, weights: list[float]) -> None:
    logits = torch.tensor([[[0.1, -0.4, 1.2, 0.3, -0.7]]])
    expected = -(torch.tensor(weights) * logits.log_softmax(-1)).sum(-1)
    found = two_hot_cross_entropy(logits, torch.tensor([[target]]), symlog_bins(5, math.e**2 - 1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_mean_is_the_target_where_the_cross_entropy_is_least() -> None:
    bins, target = symlog_bins(63, 1e4), torch.tensor([-3.3, 0.0, 0.7, 12.5, 900.0])
    logits = torch.zeros(5, 63, requires_grad=True)
    assert two_hot_mean(logits, bins).abs().max() < 1e-3
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(600):
        optimizer.zero_grad()
        two_hot_cross_entropy(logits, target, bins).sum().backward()
        optimizer.step()
    torch.testing.assert_close(two_hot_mean(logits, bins), target, rtol=0.02, atol=0.05)


@pytest.mark.parametrize(
    ("largest", "limit"),
    [(0.0, 20), (20.0, 20), (20.5, 40), (160.0, 160), (161.0, 320), (math.nan, 20)],
)
def test_bins_double_until_they_reach_the_largest(largest, limit):
    bins = symlog_bins(41, 20.0)
    wider = widened(bins, torch.tensor(largest))
    torch.testing.assert_close(wider, symlog_bins(41, float(limit)), atol=1e-6, rtol=1e-5)
    assert limit > 20 or torch.equal(wider, bins)


def test_bins_reach_to_the_largest_float_and_no_farther():
    wider = widened(symlog_bins(41, 20.0), torch.tensor(math.inf))
    assert wider.isfinite().all() and wider[-1] == torch.finfo(torch.float32).max
