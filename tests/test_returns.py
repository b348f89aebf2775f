"""The arithmetic of returns against values worked out by hand."""

import pytest
import torch

from agents.returns import ReturnScale, arrival_weight, lambda_return, percentile_range


@pytest.mark.parametrize(
    ("reward", "going", "value", "gamma", "lam", "expected"),
    [
        # 4 + 0.5 * 8 = 8; 2 + 0.5 * 8 = 6; 1 + 0.5 * 6 = 4
        ([1, 2, 4], [1, 1, 1], [9, 9, 9, 8], 0.5, 1.0, [4, 6, 8]),
        ([1, 2], [1, 1], [7, 10, 20], 0.5, 0.0, [6, 12]),  # one-step TD
        ([0, 1], [1, 1], [0, 4, 2], 1.0, 0.5, [3.5, 3]),  # 1 + 2 = 3; 0.5 * 4 + 0.5 * 3 = 3.5
        ([1, 2], [0, 1], [0, 9, 4], 0.5, 0.5, [1, 4]),  # nothing counts after a terminal state
    ],
)
def test_lambda_return_by_hand(
    reward: list, going: list, value: list, gamma: float, lam: float, expected: list
) -> None:
    rows = (torch.tensor([row], dtype=torch.float32) for row in (reward, going, value))
    assert lambda_return(*rows, gamma, lam).tolist() == [expected]


def test_lambda_return_refuses_values_without_the_bootstrap_column() -> None:
    with pytest.raises(ValueError, match=r"value \(N, K \+ 1\)"):
        lambda_return(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), 0.99, 0.95)


def test_arrival_weight_is_the_product_of_the_continue_probabilities_before() -> None:
    got = arrival_weight(torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 1.0]]))
    assert torch.equal(got, torch.tensor([[1.0, 0.5, 0.25], [1.0, 1.0, 0.0]]))


def test_percentile_range_takes_the_nearest_ranks() -> None:
    values = torch.arange(101.0)[torch.randperm(101)]
    assert torch.equal(percentile_range(values), torch.tensor([5.0, 95.0]))


def test_return_scale_follows_the_moving_average_without_start_up_bias_but_stays_over_one() -> None:
    scale = ReturnScale(decay=0.5)
    found = [scale.scale]
    for high in (0.2, 8.0, 2.0):
        scale.update(0.0, high)
        found.append(scale.scale)
    # (0.25 * 0.2 + 0.5 * 8) / 0.75; (0.125 * 0.2 + 0.25 * 8 + 0.5 * 2) / 0.875
    assert found == pytest.approx([1.0, 1.0, 5.4, 3.457142857])


def test_return_scale_goes_on_from_its_state() -> None:
    first, second = ReturnScale(decay=0.9), ReturnScale(decay=0.9)
    first.update(0.0, 7.0)
    second.set_state(first.get_state())
    first.update(1.0, 9.0)
    second.update(1.0, 9.0)
    assert first.get_state() == second.get_state()
