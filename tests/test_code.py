import math

import pytest
import torch

from mbrl.world_model.code import CategoricalCode, GaussianCode
from mbrl.world_model.settings import CODES, CategoricalSettings, GaussianSettings


def categorical(**settings):
    return CategoricalCode(CategoricalSettings(**settings))


def test_unimix_by_hand():
    code = categorical(groups=1, classes=2, unimix=0.1)
    probs = code.normalise(torch.tensor([100.0, -100.0])).exp()  # a softmax of exactly 1 and 0
    torch.testing.assert_close(probs, torch.tensor([0.95, 0.05]))


def test_log_probabilities_are_finite_without_unimix_as_well():
    code = categorical(groups=1, classes=2, unimix=0.0)
    params = code.normalise(torch.tensor([300.0, -300.0]))
    assert torch.isfinite(params).all()
    assert code.kl(params, params).item() == 0


def test_no_kl_is_infinite_with_unimix():
    code = categorical(groups=1, classes=2, unimix=0.01)
    q, p = (code.normalise(torch.tensor([s * 1e4, -s * 1e4])) for s in (1, -1))
    # 0.995 ln(0.995 / 0.005) + 0.005 ln(0.005 / 0.995)
    assert code.kl(q, p).item() == pytest.approx(0.99 * math.log(199), rel=1e-4)


def test_categorical_sample_is_one_hot_in_every_group_with_gradients_or_without():
    code = categorical(groups=4, classes=6)
    params = code.normalise(torch.randn(7, 24, requires_grad=True))
    with_grad = code.sample(params, torch.Generator().manual_seed(0))
    z = code.sample(params.detach(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(with_grad.detach(), z)
    z = z.unflatten(-1, (4, 6))
    assert ((z == 0) | (z == 1)).all() and (z.sum(-1) == 1).all()


def test_the_mode_is_the_most_likely_class_of_every_group_or_the_mean():
    categorical = CategoricalCode(CategoricalSettings(groups=2, classes=3))
    params = categorical.normalise(torch.tensor([[0.1, 0.3, 0.2, 5.0, 4.0, 4.5]]))
    assert categorical.mode(params).tolist() == [[0, 1, 0, 1, 0, 0]]
    gaussian = GaussianCode(GaussianSettings(groups=2))
    assert gaussian.mode(torch.tensor([[0.5, -2.0, 9.0, 9.0]])).tolist() == [[0.5, -2.0]]


def test_categorical_gradient_is_that_of_the_probabilities():
    code = categorical(groups=1, classes=3, unimix=0.0)
    raw = torch.tensor([0.2, -0.1, 0.5], requires_grad=True)
    weights = torch.tensor([1.0, -2.0, 3.0])
    (code.sample(code.normalise(raw), torch.Generator().manual_seed(0)) @ weights).backward()
    straight = torch.tensor([0.2, -0.1, 0.5], requires_grad=True)
    (straight.softmax(-1) @ weights).backward()
    torch.testing.assert_close(raw.grad, straight.grad)


def test_gaussian_log_std_stays_in_bounds():
    code = GaussianCode(GaussianSettings(groups=2))
    params = code.normalise(torch.tensor([5.0, -5.0, 1e6, -1e6]))
    assert params.tolist() == [5.0, -5.0, 2.0, -5.0]


def test_gaussian_sample_is_mean_plus_scaled_noise():
    code = GaussianCode(GaussianSettings(groups=1))
    params = torch.tensor([3.0, math.log(0.5)]).expand(100_000, 2)
    z = code.sample(params, torch.Generator().manual_seed(0))
    assert z.shape == (100_000, 1)
    assert z.mean().item() == pytest.approx(3.0, abs=0.01)
    assert z.std().item() == pytest.approx(0.5, abs=0.01)


def test_statistics_are_float32_whatever_the_networks_ran_in():
    for settings in (CategoricalSettings(groups=2, classes=3), GaussianSettings(groups=2)):
        code = CODES.made_by(settings)(settings)
        raw = torch.randn(4, code.raw_size).bfloat16()
        params = code.normalise(raw)
        assert params.dtype == torch.float32 and code.sample(params).dtype == torch.float32
