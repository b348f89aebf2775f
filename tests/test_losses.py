"""Expected values are worked out by hand or from closed forms."""

import math

import pytest
import torch

from mbrl.world_model.losses import (
    categorical_kl,
    free_nats,
    gaussian_kl,
    inverse_cdf_sample,
    soft_free_nats,
    weighted_sum,
)


def test_categorical_kl_by_hand():
    q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    p = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)  # the second group is equal: no nats
    assert categorical_kl(q, p).item() == pytest.approx(expected, abs=1e-6)


def test_categorical_kl_does_not_need_normalised_logits():
    q, p = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    torch.testing.assert_close(categorical_kl(q + 3.0, p - 7.0), categorical_kl(q, p))


def test_gaussian_kl_by_hand():
    # KL(N(1, 2) || N(0, 1)) = (4 + 1 - 1 - ln 4) / 2; two such dimensions are summed
    mean, std = torch.ones(2), torch.full((2,), 2.0)
    kl = gaussian_kl(mean, std, torch.zeros(2), torch.ones(2))
    assert kl.item() == pytest.approx(4 - math.log(4), abs=1e-6)


@pytest.mark.parametrize(
    ("floor", "found", "gradient"), [(1.0, [0.0, 4.0], 0.5), (3.0, [3.0, 3.0], 0.0)]
)
def test_free_nats_floor_the_mean_and_not_each_row_and_push_only_above(floor, found, gradient):
    kl = torch.tensor([0.0, 4.0], requires_grad=True)
    floored = free_nats(kl, floor)
    floored.mean().backward()
    assert floored.tolist() == found and kl.grad.tolist() == [gradient, gradient]


def test_weighted_sum_is_of_the_means_and_refuses_what_it_does_not_expect():
    terms = {"frame": torch.full((2, 2), 4.0), "reward": torch.tensor([[1.0, 2.0], [3.0, 6.0]])}
    weights = {"frame": 2.0, "reward": 0.5}
    assert weighted_sum(terms, weights, (2, 2)).item() == 2 * 4 + 0.5 * 3
    with pytest.raises(ValueError, match=r"weights of \['frame', 'reward'\], got \['frame'\]"):
        weighted_sum(terms, {"frame": 2.0}, (2, 2))
    with pytest.raises(ValueError, match=r"term reward: expected \(2, 2\), got \(4,\)"):
        weighted_sum({**terms, "reward": terms["reward"].flatten()}, weights, (2, 2))


def test_inverse_cdf_sample_has_the_right_frequencies():
    probs = torch.tensor([0.1, 0.0, 0.6, 0.3])
    n = 200_000
    drawn = inverse_cdf_sample(probs.expand(n, 4), torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=4) / n
    assert counts[1] == 0  # never a class of probability zero
    # three standard deviations of a frequency
    assert ((counts - probs).abs() <= 3 * (probs * (1 - probs) / n).sqrt()).all()


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, 1), (1 - 2**-24, 2)])
def test_inverse_cdf_sample_stays_in_range_whatever_the_rounding(monkeypatch, uniform, expected):
    """With the smallest and the largest number that `rand` gives."""
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.full(size, uniform))
    drawn = inverse_cdf_sample(torch.randn(20_000, 37).softmax(-1))
    assert drawn.min() >= 0 and drawn.max() <= 36
    assert inverse_cdf_sample(torch.tensor([0.0, 0.5, 0.5, 0.0])).item() == expected


def test_soft_free_nats_raise_the_weight_above_the_target_and_lower_it_below():
    for kl, expected in ((8.0, 0.45), (10.2, 0.5), (10.6, 0.55)):
        weight = soft_free_nats(torch.tensor(0.5), torch.tensor([kl - 1, kl + 1]), 10.0)
        assert weight.item() == pytest.approx(expected)
    assert soft_free_nats(torch.tensor(1.0), torch.tensor([99.0]), 10.0).item() == 1.0
    assert soft_free_nats(torch.tensor(1e-4), torch.tensor([0.0]), 10.0).item() == pytest.approx(
        1e-4
    )
