import math

import pytest
import torch

from mbrl.world_model.heads import Heads
from mbrl.world_model.settings import HeadSettings


def heads(**settings):
    torch.manual_seed(0)
    return Heads(6, HeadSettings(hidden=32, **settings))


def test_untrained_heads_promise_nothing_and_do_not_know_about_the_end():
    reward, continue_prob = heads().predict(torch.randn(4, 6))
    assert reward.abs().max() < 1e-5
    assert continue_prob.tolist() == [0.5] * 4


def test_untrained_loss_by_hand():
    reward_loss, continue_loss = heads(reward_bins=41).loss(
        torch.randn(1, 2, 6), torch.tensor([[0.0, 3.7]]), torch.tensor([[False, True]])
    )
    torch.testing.assert_close(reward_loss, torch.full((1, 2), math.log(41)))
    torch.testing.assert_close(continue_loss, torch.full((1, 2), math.log(2)))


def test_heads_learn_rewards_between_bins_and_endings():
    net = heads()
    features = torch.eye(6)
    reward = torch.tensor([0.0, 1.0, -1.0, 0.3, 7.3, 19.0])
    terminated = torch.tensor([False, False, True, False, True, False])
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(600):
        optimizer.zero_grad()
        sum(part.mean() for part in net.loss(features, reward, terminated)).backward()
        optimizer.step()
    predicted, continue_prob = net.predict(features)
    torch.testing.assert_close(predicted, reward, atol=0.1, rtol=0.02)
    assert ((continue_prob < 0.5) == terminated).all()


@pytest.mark.parametrize("largest", [20.5, 1e6, 1e30, 3e38])
def test_bins_widen_to_the_rewards_trained_on_and_stay_wide(largest):
    net = heads()
    features, reward = torch.eye(6), torch.tensor([0.0, 1.0, -1.0, largest, -largest, 5.0])
    ended = torch.zeros(6, dtype=torch.bool)
    net.eval().loss(features, reward, ended)
    assert net.bins[-1] == 20
    net.train().loss(features, reward, ended)
    assert largest <= net.bins[-1] and net.bins.isfinite().all() and net.bins[20].abs() < 1e-9
    wide = net.bins.clone()
    net.loss(features, torch.zeros(6), ended)
    assert torch.equal(net.bins, wide)


def test_a_reward_of_a_hundred_is_learnt():
    net, features = heads(), torch.eye(6)
    reward = torch.tensor([100.0, -100.0, 1.0, 0.0, 50.0, -3.0])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        net.loss(features, reward, torch.zeros(6, dtype=torch.bool))[0].mean().backward()
        optimizer.step()
    torch.testing.assert_close(net.predict(features)[0], reward, atol=0.2, rtol=0.02)


def test_rewards_are_float32_and_exact_under_autocast():
    net = heads()
    with torch.no_grad():  # all weight on the bin of the largest reward
        net.out.bias[net.bins.numel() - 1] = 1e4
    with torch.autocast("cpu", torch.bfloat16):
        reward, continue_prob = net.predict(torch.randn(3, 6))
    assert reward.dtype == continue_prob.dtype == torch.float32
    torch.testing.assert_close(reward, net.bins[-1].expand(3))
