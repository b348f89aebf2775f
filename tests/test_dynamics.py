import pytest
import torch

from mbrl.world_model.code import CategoricalCode
from mbrl.world_model.dynamics import Dynamics, cut_at_starts
from mbrl.world_model.latent import Latent
from mbrl.world_model.settings import CategoricalSettings

F, T = False, True


@pytest.fixture
def dynamics():
    torch.manual_seed(0)
    code = CategoricalCode(CategoricalSettings(groups=2, classes=3))
    return Dynamics(code, action_size=4, hidden=8, prior_hidden=5)


def test_cut_at_starts_by_hand():
    row, column, pieces = cut_at_starts(torch.tensor([[T, F, F, T, F], [F, F, T, T, F]]))
    assert row.tolist() == [[0, 0, 0, 1, 1], [2, 2, 3, 4, 4]]
    assert column.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 1]]
    assert pieces == 5


def test_cut_at_starts_of_rows_without_any_start_gives_one_piece_each():
    is_first = torch.zeros(3, 4, dtype=torch.bool)
    row, column, pieces = cut_at_starts(is_first)
    assert row.tolist() == [[i] * 4 for i in range(3)] and pieces == 3
    assert column.tolist() == [[0, 1, 2, 3]] * 3 and not is_first.any()


def nothing(batch):
    return Latent(torch.zeros(batch, 8), torch.zeros(batch, 6))


def random_sequences(batch=6, length=12):
    generator = torch.Generator().manual_seed(1)
    codes = torch.rand(batch, length, 6, generator=generator)
    actions = torch.rand(batch, length, 4, generator=generator)
    is_first = torch.rand(batch, length, generator=generator) < 0.3
    return codes, actions, is_first


def test_sequence_equals_single_steps_with_resets(dynamics):
    codes, actions, is_first = random_sequences()
    assert is_first.any() and not is_first[:, 0].all()
    before = Latent(torch.rand(6, 8), torch.rand(6, 6))
    hidden, code, steps = before.hidden, before.code, []
    for t in range(codes.shape[1]):
        keep = (~is_first[:, t : t + 1]).float()
        hidden = dynamics.step(hidden * keep, code * keep, actions[:, t] * keep)
        code = codes[:, t]
        steps.append(hidden)
    states = dynamics.sequence(codes, actions, is_first, before)
    torch.testing.assert_close(states, torch.stack(steps, 1), atol=1e-5, rtol=0)


def test_states_after_a_start_do_not_depend_on_what_was_before(dynamics):
    codes, actions, is_first = random_sequences(batch=1, length=8)
    is_first[:] = F
    is_first[:, 3] = T
    states = dynamics.sequence(codes, actions, is_first, nothing(1))
    codes[:, :3], actions[:, :4] = 7.0, -7.0  # the action that "led to" a first row is not real
    after = dynamics.sequence(codes, actions, is_first, nothing(1))
    assert torch.equal(states[:, 3:], after[:, 3:])
    assert not torch.allclose(states[:, :3], after[:, :3])


def test_state_depends_on_codes_before_it_and_on_the_action_that_led_to_it(dynamics):
    codes, actions, is_first = random_sequences(batch=1, length=5)
    is_first[:] = F
    codes.requires_grad_(True)
    actions.requires_grad_(True)
    dynamics.sequence(codes, actions, is_first, nothing(1))[0, 2].sum().backward()
    assert (codes.grad[0].abs().sum(-1) > 0).tolist() == [T, T, F, F, F]
    assert (actions.grad[0].abs().sum(-1) > 0).tolist() == [T, T, T, F, F]


def test_step_runs_under_autocast_with_a_float32_state(dynamics):
    with torch.autocast("cpu", torch.bfloat16):
        hidden = dynamics.step(torch.zeros(3, 8), torch.rand(3, 6), torch.rand(3, 4))
    assert hidden.dtype == torch.float32
