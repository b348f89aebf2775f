"""The arithmetic of returns against values worked out by hand."""

import math

import pytest
import torch

from agents.returns import (
    ReturnScale,
    arrival_weight,
    lambda_return,
    percentile_range,
    symexp,
    symlog,
    twohot_cross_entropy,
    twohot_mean,
    value_bins,
)


def test_lambda_return_is_the_discounted_sum_plus_bootstrap_when_lambda_is_one() -> None:
    reward = torch.tensor([[1.0, 2.0, 4.0]])
    going = torch.ones(1, 3)
    value = torch.tensor([[9.0, 9.0, 9.0, 8.0]])
    got = lambda_return(reward, going, value, gamma=0.5, lam=1.0)
    # 4 + 0.5 * 8 = 8; 2 + 0.5 * 8 = 6; 1 + 0.5 * 6 = 4
    assert torch.equal(got, torch.tensor([[4.0, 6.0, 8.0]]))


def test_lambda_return_is_one_step_td_when_lambda_is_zero() -> None:
    reward = torch.tensor([[1.0, 2.0]])
    value = torch.tensor([[7.0, 10.0, 20.0]])
    got = lambda_return(reward, torch.ones(1, 2), value, gamma=0.5, lam=0.0)
    assert torch.equal(got, torch.tensor([[6.0, 12.0]]))


def test_lambda_return_mixes_value_and_later_target() -> None:
    reward = torch.tensor([[0.0, 1.0]])
    value = torch.tensor([[0.0, 4.0, 2.0]])
    got = lambda_return(reward, torch.ones(1, 2), value, gamma=1.0, lam=0.5)
    # 1 + 2 = 3; 0 + 0.5 * 4 + 0.5 * 3 = 3.5
    assert torch.equal(got, torch.tensor([[3.5, 3.0]]))


def test_lambda_return_ignores_everything_after_a_terminal_state() -> None:
    reward = torch.tensor([[1.0, 100.0]])
    value = torch.tensor([[0.0, 100.0, 100.0]])
    ends = torch.tensor([[0.0, 1.0]])
    got = lambda_return(reward, ends, value, gamma=0.9, lam=0.95)
    assert got[0, 0] == 1.0


def test_lambda_return_refuses_values_without_the_bootstrap_column() -> None:
    with pytest.raises(ValueError, match=r"value \(N, K \+ 1\)"):
        lambda_return(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), 0.99, 0.95)


def test_arrival_weight_is_the_product_of_the_continue_probabilities_before() -> None:
    got = arrival_weight(torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 1.0]]))
    assert torch.equal(got, torch.tensor([[1.0, 0.5, 0.25], [1.0, 1.0, 0.0]]))


def test_percentile_range_takes_the_nearest_ranks() -> None:
    values = torch.arange(101.0)[torch.randperm(101)]
    assert torch.equal(percentile_range(values), torch.tensor([5.0, 95.0]))


def test_return_scale_is_one_before_data_and_for_small_returns() -> None:
    scale = ReturnScale(decay=0.9)
    assert scale.scale == 1.0
    scale.update(-0.1, 0.2)
    assert scale.scale == 1.0


def test_return_scale_has_no_start_up_bias_and_follows_the_moving_average() -> None:
    scale = ReturnScale(decay=0.5)
    scale.update(0.0, 8.0)
    assert scale.scale == pytest.approx(8.0)
    scale.update(0.0, 2.0)
    # (0.25 * 8 + 0.5 * 2) / 0.75
    assert scale.scale == pytest.approx(4.0)


def test_return_scale_goes_on_from_its_state() -> None:
    first, second = ReturnScale(decay=0.9), ReturnScale(decay=0.9)
    first.update(0.0, 7.0)
    second.set_state(first.get_state())
    first.update(1.0, 9.0)
    second.update(1.0, 9.0)
    assert first.get_state() == second.get_state()


def test_symlog_and_symexp_are_inverse() -> None:
    values = torch.tensor([-100.0, -1.0, 0.0, math.e - 1, 50.0])
    assert torch.allclose(symexp(symlog(values)), values, rtol=1e-5)
    assert symlog(torch.tensor(math.e - 1)).item() == pytest.approx(1.0)


def test_value_bins_are_symmetric_and_hold_zero() -> None:
    bins = value_bins(5, math.e**2 - 1)
    expected = [-(math.e**2) + 1, -math.e + 1, 0.0, math.e - 1, math.e**2 - 1]
    assert bins.tolist() == pytest.approx(expected, rel=1e-6)


def test_value_bins_refuses_an_even_number() -> None:
    with pytest.raises(ValueError, match="odd number"):
        value_bins(4, 10.0)


def test_twohot_cross_entropy_equals_the_explicit_two_hot_code() -> None:
    bins = value_bins(5, math.e**2 - 1)
    logits = torch.randn(3, 5)
    # 0 sits on bin 2; (e - 1) / 4 is a quarter of the way from bin 2 to bin 3; 1e9 is the last bin.
    target = torch.tensor([0.0, (math.e - 1) / 4, 1e9])
    code = torch.tensor([[0, 0, 1.0, 0, 0], [0, 0, 0.75, 0.25, 0], [0, 0, 0, 0, 1.0]])
    expected = -(code * logits.log_softmax(-1)).sum(-1)
    assert torch.allclose(twohot_cross_entropy(logits, target, bins), expected, atol=1e-5)


def test_twohot_mean_recovers_the_target_after_fitting_the_cross_entropy() -> None:
    bins = value_bins(63, 1e4)
    target = torch.tensor([-3.3, 0.0, 0.7, 12.5, 900.0])
    logits = torch.zeros(5, 63, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(600):
        optimizer.zero_grad()
        twohot_cross_entropy(logits, target, bins).sum().backward()
        optimizer.step()
    assert torch.allclose(twohot_mean(logits, bins), target, rtol=0.02, atol=0.05)


def test_twohot_mean_of_equal_logits_is_zero() -> None:
    bins = value_bins(63, 1e4)
    assert twohot_mean(torch.zeros(2, 63), bins).abs().max() < 1e-3
