"""The arithmetic of returns against values worked out by hand."""

import pytest
import torch

from agents.returns import (
    ReturnScale,
    arrival_weight,
    lambda_return,
    percentile_range,
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
