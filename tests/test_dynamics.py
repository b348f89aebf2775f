import pytest
import torch

from mbrl.world_model.code import CategoricalCode
from mbrl.world_model.dynamics import Dynamics, cut_at_starts, dreamt_tails
from mbrl.world_model.settings import CodeSettings

F, T = False, True


@pytest.fixture
def dynamics():
    torch.manual_seed(0)
    code = CategoricalCode(CodeSettings(groups=2, classes=3))
    return Dynamics(code, action_size=4, hidden=8, prior_hidden=5)


def test_cut_at_starts_by_hand():
    row, column, pieces = cut_at_starts(torch.tensor([[T, F, F, T, F], [F, F, T, T, F]]))
    assert row.tolist() == [[0, 0, 0, 1, 1], [2, 2, 3, 4, 4]]
    assert column.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 1]]
    assert pieces == 5


def test_cut_at_starts_of_rows_without_any_start_gives_one_piece_each():
    row, column, pieces = cut_at_starts(torch.zeros(3, 4, dtype=torch.bool))
    assert row.tolist() == [[i] * 4 for i in range(3)] and pieces == 3
    assert column.tolist() == [[0, 1, 2, 3]] * 3


def test_cut_at_starts_does_not_change_its_input():
    is_first = torch.zeros(2, 3, dtype=torch.bool)
    cut_at_starts(is_first)
    assert not is_first.any()


def random_sequences(batch=6, length=12):
    generator = torch.Generator().manual_seed(1)
    codes = torch.rand(batch, length, 6, generator=generator)
    actions = torch.rand(batch, length, 4, generator=generator)
    is_first = torch.rand(batch, length, generator=generator) < 0.3
    return codes, actions, is_first


def test_sequence_equals_single_steps_with_resets(dynamics):
    codes, actions, is_first = random_sequences()
    assert is_first.any() and not is_first[:, 0].all()
    hidden, code = torch.zeros(6, 8), torch.zeros(6, 6)
    steps = []
    for t in range(codes.shape[1]):
        keep = (~is_first[:, t : t + 1]).float()
        hidden = dynamics.step(hidden * keep, code * keep, actions[:, t] * keep)
        code = codes[:, t]
        steps.append(hidden)
    states = dynamics.sequence(codes, actions, is_first)
    torch.testing.assert_close(states, torch.stack(steps, 1), atol=1e-5, rtol=0)


def test_states_after_a_start_do_not_depend_on_what_was_before(dynamics):
    codes, actions, is_first = random_sequences(batch=1, length=8)
    is_first[:] = F
    is_first[:, 3] = T
    states = dynamics.sequence(codes, actions, is_first)
    codes[:, :3], actions[:, :4] = 7.0, -7.0  # the action that "led to" a first row is not real
    after = dynamics.sequence(codes, actions, is_first)
    assert torch.equal(states[:, 3:], after[:, 3:])
    assert not torch.allclose(states[:, :3], after[:, :3])


def test_state_depends_on_codes_before_it_and_on_the_action_that_led_to_it(dynamics):
    codes, actions, is_first = random_sequences(batch=1, length=5)
    is_first[:] = F
    codes.requires_grad_(True)
    actions.requires_grad_(True)
    dynamics.sequence(codes, actions, is_first)[0, 2].sum().backward()
    assert (codes.grad[0].abs().sum(-1) > 0).tolist() == [T, T, F, F, F]
    assert (actions.grad[0].abs().sum(-1) > 0).tolist() == [T, T, T, F, F]


def test_step_runs_under_autocast_with_a_float32_state(dynamics):
    with torch.autocast("cpu", torch.bfloat16):
        hidden = dynamics.step(torch.zeros(3, 8), torch.rand(3, 6), torch.rand(3, 4))
    assert hidden.dtype == torch.float32


def test_prior_has_the_size_of_the_codes_parameters(dynamics):
    assert dynamics.prior(torch.rand(2, 7, 8)).shape == (2, 7, 6)


def test_states_of_sequences_with_nothing_dreamt_are_those_that_follow_every_frame(dynamics):
    codes, actions, is_first = random_sequences()
    states = dynamics.partly_dreamt(codes, actions, is_first, torch.zeros_like(is_first))
    expected = dynamics.sequence(codes, actions, is_first)
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=0)


def test_a_dreamt_row_goes_on_with_a_code_of_the_prior(dynamics):
    """Its prior says class 1 in one group and class 2 in the other, whatever the state."""
    with torch.no_grad():
        dynamics.prior_out.weight.zero_()
        dynamics.prior_out.bias.copy_(torch.tensor([0, 99.0, 0, 0, 0, 99]))
    dynamics.code.unimix = 0
    codes, actions, is_first = random_sequences(batch=2, length=5)
    is_first[:] = F
    dreamt = torch.tensor([[F, F, T, T, T], [F, T, F, F, F]])
    guessed = codes.clone()
    guessed[dreamt] = torch.tensor([0, 1.0, 0, 0, 0, 1])
    states = dynamics.partly_dreamt(codes, actions, is_first, dreamt)
    torch.testing.assert_close(states, dynamics.sequence(guessed, actions, is_first))


def test_the_first_frame_of_an_episode_is_looked_at_in_a_dream_as_well(dynamics):
    codes, actions, is_first = random_sequences(batch=1, length=5)
    is_first[:] = F
    is_first[0, 2] = T
    codes.requires_grad_(True)
    states = dynamics.partly_dreamt(codes, actions, is_first, torch.ones_like(is_first))
    states[0, -1].sum().backward()
    assert (codes.grad[0].abs().sum(-1) > 0).tolist() == [F, F, T, F, F]


def test_dreams_are_the_ends_of_a_share_of_the_sequences():
    generator = torch.Generator().manual_seed(0)
    tails = dreamt_tails(torch.zeros(4000, 6, dtype=torch.bool), 0.25, generator)
    starts = 6 - tails.sum(1)
    assert torch.equal(tails, torch.arange(6) >= starts[:, None])
    counts = starts.bincount(minlength=7)  # 3,000 without a dream, the others begin at row 1, 2, 3
    assert counts[[0, 4, 5]].tolist() == [0, 0, 0]
    assert counts[6].item() == pytest.approx(3000, abs=110)  # 4 standard deviations
    assert counts[1:4].tolist() == pytest.approx([333, 333, 333], abs=71)


@pytest.mark.parametrize("length", [1, 2])
def test_the_shortest_sequences_have_no_row_before_their_first(length):
    tails = dreamt_tails(torch.zeros(3, length, dtype=torch.bool), 1.0)
    assert tails.tolist() == [[F, T][:length]] * 3
