"""Between levels and a flow's numbers: nothing is lost on the way, and every density is known."""

import math
from statistics import NormalDist

import pytest
import torch
from flow_makers import flow, numbers_of
from simple_world import generator
from torch import nn

from mbrl.world_model.decoders.flow import ImageFlow
from mbrl.world_model.decoders.flow.image_flow import UNSEEN, Grid, Quantiles
from mbrl.world_model.settings import FlowSettings

NORMAL = NormalDist()


class Middle(nn.Module):
    """Noise that is always in the middle of a bin."""

    def forward(self, image, dtype, generator):
        return torch.full(image.shape, 0.5, dtype=dtype), torch.zeros(len(image), dtype=dtype)


def quantiles(*probabilities):
    """One pixel whose levels have these probabilities."""
    made = Quantiles((1, 1, 1), len(probabilities))
    wanted = torch.tensor(probabilities).view(1, -1, 1, 1)
    share = made.marginal.uniform_share
    made.marginal.frequency.copy_((wanted - share / len(probabilities)) / (1 - share))
    return made


@pytest.mark.parametrize("kind", ["grid", "quantiles"])
@pytest.mark.parametrize("levels", [2, 16, 32, 256])
def test_levels_survive_with_any_noise(levels, kind):
    surface = Grid(levels) if kind == "grid" else Quantiles((1, 1, 1), levels)
    surface.see(torch.zeros(1, 1, 1, 1, dtype=torch.uint8))  # all but level 0 are rare
    image = torch.arange(levels).view(-1, 1, 1, 1)
    for noise in (0.001, 0.5, 0.999):
        y, log_det = surface(image, torch.full(image.shape, noise))
        assert y.shape == image.shape and y.dtype == torch.float32 and log_det.shape == (levels,)
        assert torch.equal(surface.to_levels(y).long(), image)
    far = surface.to_levels(torch.tensor([-30.0, 30.0]).view(2, 1, 1, 1))
    assert far.flatten().tolist() == [0, levels - 1] and far.dtype == torch.uint8


def test_the_grid_lays_levels_side_by_side():
    y, log_det = Grid(4)(torch.tensor([[[[0, 3]]]]), torch.full((1, 1, 1, 2), 0.5))
    assert y.flatten().tolist() == [-0.375, 0.375]
    assert log_det.item() == pytest.approx(-2 * math.log(4))


def test_a_pixel_goes_through_its_distribution_and_out_through_the_normals():
    surface = quantiles(0.25, 0.75)
    image = torch.tensor([0, 1]).view(2, 1, 1, 1)
    y, log_det = surface(image, torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64))
    expected = [NORMAL.inv_cdf(0.125), NORMAL.inv_cdf(0.625)]
    assert y.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    slopes = [0.25 / NORMAL.pdf(expected[0]), 0.75 / NORMAL.pdf(expected[1])]
    assert log_det.exp().tolist() == pytest.approx(slopes, rel=1e-5)


def test_what_never_changes_is_gaussian_already():
    surface = Quantiles((1, 8, 8), 16)
    image = torch.full((500, 1, 8, 8), 5)
    for _ in range(3):
        surface.see(image)
    y, _ = surface(image, torch.rand(image.shape, generator=generator()))
    assert abs(y.mean()) < 0.02 and y.std() == pytest.approx(1, abs=0.02)


def test_no_noise_makes_an_infinite_number():
    surface = quantiles(0.5, 0.5)
    image = torch.tensor([0, 1]).view(2, 1, 1, 1)
    for noise in (0.0, 1.0):
        y, log_det = surface(image, torch.full((2, 1, 1, 1), noise))
        assert torch.isfinite(y).all() and torch.isfinite(log_det).all()


def test_an_untrained_flow_on_quantiles_has_the_likelihood_of_the_marginals():
    """Identity steps keep a Gaussian, so only the pixels' own probabilities are left."""
    made = flow((1, 2, 2), levels=4, scales=1, shake=0.0)
    image = torch.tensor([[[[0, 1], [2, 3]]], [[[0, 1], [2, 2]]], [[[0, 1], [2, 2]]]])
    made.surface.see(image)
    third = math.log((1 - UNSEEN) / 3 + UNSEEN / 4)
    most = math.log(2 * (1 - UNSEEN) / 3 + UNSEEN / 4)
    sure = 3 * math.log(1 - UNSEEN + UNSEEN / 4)
    nats = made.eval().log_prob(image, generator=generator())
    torch.testing.assert_close(
        nats, torch.tensor([sure + third, sure + most, sure + most]).double(), atol=1e-5, rtol=0
    )


def test_an_untrained_flow_on_the_grid_has_the_likelihood_of_its_gaussian():
    """Identity steps, an identity prior: log N(y; 0, 1) of rotated numbers, minus D log V."""
    made = flow((1, 2, 2), levels=4, scales=1, shake=0.0, marginal=False)
    y = numbers_of(made, 2)
    expected = -0.5 * (y.square().flatten(1).sum(1) + 4 * math.log(2 * math.pi))
    torch.testing.assert_close(made.log_density(y), expected, atol=1e-5, rtol=0)
    made.dequantise = Middle()
    image = torch.tensor([[[[0, 1], [2, 3]]]])  # centres -3/8, -1/8, 1/8, 3/8
    squares = 2 * (9 + 1) / 64
    nats = 0.5 * (squares + 4 * math.log(2 * math.pi)) + 4 * math.log(4)
    assert -made.log_prob(image).item() == pytest.approx(nats, abs=1e-5)


def every_image():
    codes = torch.arange(16)[:, None] >> torch.arange(4) & 1
    return codes.view(16, 1, 2, 2).to(torch.uint8)


def mass(made, draws):
    with torch.no_grad():
        images = every_image().repeat(draws, 1, 1, 1)
        return (made.log_prob(images, generator=generator()).exp().sum() / draws).item()


def test_probabilities_of_all_images_add_up_to_one():
    """Quantiles leave no place outside the levels."""
    made = flow((1, 2, 2), levels=2, scales=1, width=4, shake=0.05)
    made.surface.see(every_image()[:5])
    made.eval()
    untrained = flow((1, 2, 2), levels=2, scales=1, width=4, shake=0.0)
    untrained.surface.load_state_dict(made.surface.state_dict())
    image = every_image()
    draws = [made.log_prob(image, generator=generator(seed)) for seed in range(2)]
    assert not torch.allclose(*draws) and mass(untrained.eval(), 1) == pytest.approx(1, abs=1e-5)
    assert mass(made, 3_000) == pytest.approx(1, rel=0.02)


def test_probabilities_on_the_grid_add_up_to_the_mass_inside_the_levels():
    """What the model puts outside [0, V) is lost to the images; samples say how much that is."""
    made = flow((1, 2, 2), levels=2, scales=1, width=4, shake=0.03, marginal=False)
    made.top.out.bias.data[4:] = -1.0  # narrow enough for most of it to be inside
    latents = [torch.randn(100_000, 4, 1, 1, generator=generator(), dtype=torch.float64)]
    inside = (made.restore(latents).abs() <= 0.5).flatten(1).all(1).double().mean()
    assert 0.2 < inside < 0.99
    assert mass(made, 3_000) == pytest.approx(inside.item(), rel=0.02)


def test_a_likelihood_changes_no_marginal_and_every_image_seen_counts_the_same():
    made = flow((1, 2, 2), levels=2, scales=1)
    frequency = made.surface.marginal.frequency
    before = frequency.clone()
    image = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    made.train().log_prob(image)
    made.initialise(image)
    assert torch.equal(frequency, before)
    for _ in range(299):
        made.see(image)
    made.see(image + 1)
    torch.testing.assert_close(frequency[0, 1], torch.full((2, 2), 1 / 300).double())


def pairs(count, stream):
    """Images of fair coins in which every pixel equals the one beside it: half a bit each."""
    return torch.randint(2, (count, 1, 4, 2), generator=stream).repeat_interleave(2, 3).byte()


def test_what_goes_together_is_learnt_beyond_the_marginals():
    torch.manual_seed(0)
    made = ImageFlow((1, 4, 4), 2, 0, FlowSettings(scales=1, steps=6, width=16))
    assert made.settings.marginal
    stream = generator()
    made.see(pairs(4096, stream))
    made.initialise(pairs(256, stream), generator=stream)
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)

    def bits(count):
        return -made.log_prob(pairs(count, stream), generator=stream).mean() / (16 * math.log(2))

    before = bits(1024).item()
    for _ in range(100):
        optimizer.zero_grad()
        bits(64).backward()
        optimizer.step()
    # One bit is what the marginals cost. Two coins sent to half-normals have a correlation of
    # 2 / pi, and a linear map gains half of log2(1 - correlation^2) for every pair of them.
    linear = 1 + 0.25 * math.log2(1 - (2 / math.pi) ** 2)
    assert before > linear
    assert 0.5 < bits(1024).item() < linear - 0.03
