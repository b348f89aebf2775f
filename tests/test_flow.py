"""Flows: exact densities, exact inverses, and the published numbers of parameters."""

import math

import pytest
import torch
from flow_makers import FEATURES, SHARING, features_of, flow, image_of, nudged, numbers_of, shaken

from mbrl.world_model.decoders.flow import ImageFlow
from mbrl.world_model.decoders.flow.image_flow import GaussianPrior, cosines, normal_log_prob
from mbrl.world_model.decoders.flow.layers import (
    ActNorm,
    Checkerboard,
    Condition,
    Halves,
    InvertibleConv,
    ZeroConv,
    border,
)
from mbrl.world_model.decoders.flow.steps import Stage
from mbrl.world_model.settings import FlowSettings

# -- parameters -----------------------------------------------------------------------------------


def cifar_parameters(sharing):
    settings = FlowSettings(sharing=sharing, steps=32, scales=3, width=512)
    made = ImageFlow((3, 32, 32), 256, 0, settings)
    return sum(weight.numel() for weight in made.parameters())


def test_parameters_at_the_published_cifar_10_configuration():
    """Channels 12, 24, 48; width 512; 32 steps: sums by hand, from the layers of Glow's code."""
    width, steps, channels = 512, 32, (12, 24, 48)
    hidden = sum(9 * (c // 2 + 1) * width + 2 * width + width**2 + 2 * width for c in channels)
    last = sum(9 * (width + 1) * c + 2 * c for c in channels)
    linear = steps * sum(c * c + 2 * c for c in channels)
    splits = sum(9 * (c // 2 + 1) * c + 2 * c for c in channels[:2])
    top = 9 * (2 * 48 + 1) * 96 + 2 * 96
    rest = linear + splits + top
    film = steps * len(channels) * 4 * width
    projections = steps * sum(width * c + 2 * c for c in channels)
    expected = {
        "none": steps * (hidden + last) + rest,
        "level": hidden + last + rest,
        "level+film": hidden + last + film + rest,
        "level+film+proj": hidden + film + projections + rest,
    }
    assert {mode: cifar_parameters(mode) for mode in expected} == expected
    assert expected["none"] == pytest.approx(44.60e6, abs=0.005e6)
    assert [round(expected[mode] / 1e6, 3) for mode in SHARING[1:4]] == [1.578, 1.774, 2.768]
    assert 100 * expected["level"] / expected["none"] == pytest.approx(3.5, abs=0.2)
    assert 100 * expected["level+film+proj"] / expected["none"] == pytest.approx(6.2, abs=0.2)
    assert cifar_parameters("global") < expected["level"]


# -- layers ---------------------------------------------------------------------------------------


def test_actnorm_normalises_the_batch_it_starts_from():
    norm = ActNorm(2)
    x = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1) * torch.tensor([1.0, 10.0]).view(1, 2, 1, 1)
    norm.initialise(x)  # means 2 and 20, deviations 1 and 10
    torch.testing.assert_close(norm.bias.data, torch.tensor([-2.0, -20.0]))
    torch.testing.assert_close(norm.log_scale.data, -torch.tensor([1.0, 10.0]).log())
    norm.initialise(torch.ones(4, 2, 3, 3))
    assert torch.isfinite(norm.log_scale).all()


def test_an_invertible_convolution_starts_as_a_rotation_and_knows_its_determinant():
    conv, identity = InvertibleConv(6).double(), torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(conv.weight() @ conv.weight().T, identity, atol=1e-5, rtol=0)
    shaken(conv, 0.3)
    torch.testing.assert_close(conv.log_det(), torch.linalg.slogdet(conv.weight())[1])
    torch.testing.assert_close(conv.inverse() @ conv.weight(), identity)


def test_the_inverse_is_cached_in_eval_mode_until_the_weights_change():
    conv = InvertibleConv(4).eval()
    first = conv.inverse()
    assert conv.inverse() is first
    shaken(conv)
    torch.testing.assert_close(conv.inverse() @ conv.weight(), torch.eye(4))
    conv.load_state_dict(InvertibleConv(4).state_dict())
    torch.testing.assert_close(conv.inverse() @ conv.weight(), torch.eye(4))
    conv.train()
    assert conv.inverse() is not conv.inverse()


def test_padding_is_marked_by_a_channel_of_its_own():
    assert border(torch.zeros(1, 7, 1, 2))[0, 0].tolist() == [[1, 1, 1, 1], [1, 0, 0, 1], [1] * 4]
    conv = ZeroConv(1, 1, 3)
    conv.weight.data[:, 1] = 1  # counts how much of the padding a pixel sees
    assert conv(torch.zeros(1, 1, 3, 3))[0, 0].tolist() == [[5, 3, 5], [3, 0, 3], [5, 3, 5]]


def test_cosines_tell_all_positions_apart():
    assert torch.linalg.matrix_rank(cosines(12, 3, 4).flatten(2)[0]) == 12
    assert cosines(5, 1, 2).shape == (1, 5, 1, 2)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("kind", ["halves", "checkerboard"])
def test_couplings_leave_one_part_unchanged_and_invert(kind, affine, swapped):
    coupling = (
        Halves(4, affine, swapped) if kind == "halves" else Checkerboard(4, 3, 2, affine, swapped)
    )
    z = torch.randn(2, 4, 3, 2)
    raw = 3 * torch.randn(2, coupling.outputs, 3, 2)
    out, log_det = coupling.transform(z, raw)
    assert torch.equal(coupling.unchanged(out), coupling.unchanged(z)) and not torch.equal(out, z)
    assert log_det.shape == (2,) and (affine or not log_det.any())
    torch.testing.assert_close(coupling.invert(out, raw), z, atol=1e-5, rtol=1e-5)
    part = torch.randn_like(coupling.unchanged(z))  # <spread(p), z> = <p, unchanged(z)>
    torch.testing.assert_close(
        (coupling.spread(part) * z).sum(), (part * coupling.unchanged(z)).sum()
    )


# -- densities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [0, FEATURES])
@pytest.mark.parametrize("coupling", ["affine", "additive"])
@pytest.mark.parametrize("variant", ["glow", "realnvp"])
@pytest.mark.parametrize("sharing", SHARING)
def test_the_log_determinant_is_that_of_autograds_jacobian(sharing, variant, coupling, features):
    made = flow((1, 4, 4), features=features, sharing=sharing, variant=variant, coupling=coupling)
    y, condition = numbers_of(made, 1), features_of(made, 1)

    def latents(flat):
        parts, _ = made.to_latents(flat.view(1, 1, 4, 4), condition)
        return torch.cat([part.flatten() for part in parts])

    jacobian = torch.autograd.functional.jacobian(latents, y.flatten())
    _, log_det = torch.linalg.slogdet(jacobian)
    assert log_det.abs() > 0.01
    noise = latents(y.flatten())
    expected = log_det - 0.5 * (noise.square().sum() + 16 * math.log(2 * math.pi))
    torch.testing.assert_close(
        made.log_density(y, condition), expected[None], atol=1e-9, rtol=1e-12
    )


@pytest.mark.parametrize("sharing", ["none", "level+film+proj"])
@pytest.mark.parametrize(
    ("kind", "shape"), [("glow", (2, 1, 1)), ("checkerboard", (1, 1, 2)), ("halves", (2, 1, 1))]
)
def test_densities_of_two_pixels_integrate_to_one(kind, shape, sharing):
    """Two numbers are too few to squeeze, so here the stage and its prior stand alone."""
    torch.manual_seed(0)
    settings = FlowSettings(width=6, steps=4, sharing=sharing)
    stage = shaken(Stage(shape, kind, settings, steps=4).double(), 0.1)
    prior = shaken(GaussianPrior(shape, maps=0, top=True).double(), 0.1)
    side = torch.linspace(-15, 15, 301, dtype=torch.float64)
    y = torch.cartesian_prod(side, side).view(-1, *shape)
    with torch.no_grad():
        z, one = stage(y, Condition(None, None))
        noise, two = prior.standardise(z, z, None)
        density = (one + two + normal_log_prob(noise)).exp()
    assert density.std() > 0
    assert (density.sum() * (side[1] - side[0]) ** 2).item() == pytest.approx(1, abs=0.01)


# -- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("variant", ["glow", "realnvp"])
@pytest.mark.parametrize("sharing", SHARING)
def test_96_steps_and_back_return_the_image(sharing, variant, dtype, most):
    """Normalised by one batch, as before training, and tried on other numbers.

    Each layer is a twentieth away from its start: much further, so many couplings in a row are a
    chaotic map. The flow study measures the round trips of trained flows.
    """
    values = {"scales": 3, "steps": 32, "sharing": sharing, "variant": variant, "dtype": dtype}
    made = nudged(flow((1, 16, 16), shake=0.0, **values), 0.05)
    made.initialise(image_of(made, 64))
    made.eval()
    image, y = image_of(made, seed=1), numbers_of(made, seed=1)
    with torch.no_grad():
        latents, _ = made.to_latents(y, None)
    assert (made.restore(latents) - y).abs().max() < most
    assert torch.equal(made.decode(made.encode(image)), image)


def tensor_float(x):
    """What a GPU makes of a convolution's float32 inputs: ten bits of mantissa."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


@pytest.mark.parametrize("sharing", ["none", "level+film+proj"])
def test_a_round_trip_is_exact_although_convolutions_are_rounded_to_ten_bits(sharing, monkeypatch):
    convolve = torch.nn.functional.conv2d
    calls = []

    def rounded(x, weight, *more, **named):
        calls.append(weight.shape)
        return convolve(tensor_float(x), tensor_float(weight), *more, **named)

    monkeypatch.setattr(torch.nn.functional, "conv2d", rounded)
    # networks may be rounded, since they read the same both ways; the mixing of channels may not:
    # rounded, it comes back ten times further off
    test_96_steps_and_back_return_the_image(sharing, "glow", torch.float32, 3e-4)
    assert calls
    third = torch.tensor(1 / 3)
    assert 0 < (tensor_float(third) - third).abs() < 2**-12  # and they are rounded


@pytest.mark.gpu
@pytest.mark.parametrize("sharing", SHARING)
def test_a_round_trip_is_exact_on_a_gpu(sharing):
    made = nudged(flow((1, 16, 16), shake=0.0, scales=3, steps=32, sharing=sharing), 0.05)
    made.initialise(image_of(made, 64))
    made = made.float().cuda().eval()
    image = image_of(made, seed=1).cuda()
    assert torch.equal(made.decode(made.encode(image)), image)


@pytest.mark.parametrize("coupling", [Halves(2, affine=True), Checkerboard(1, 2, 2, affine=True)])
def test_no_coupling_scales_by_more_than_its_limit_whatever_its_network_says(coupling):
    z = torch.ones(1, 2, 2, 2) if isinstance(coupling, Halves) else torch.ones(1, 1, 2, 2)
    raw = torch.full((1, coupling.outputs, 2, 2), 1e6)
    raw[:, : coupling.outputs // 2] = 0  # no shift
    changed, log_det = coupling.transform(z, raw)
    assert changed.max().item() == pytest.approx(math.exp(0.5))
    assert log_det.item() == pytest.approx(0.5 * (4 if isinstance(coupling, Halves) else 2))


@pytest.mark.parametrize("coupling", ["affine", "additive"])
@pytest.mark.parametrize("variant", ["glow", "realnvp"])
@pytest.mark.parametrize("sharing", SHARING)
def test_decode_inverts_encode_given_features(sharing, variant, coupling):
    made = flow(
        (3, 8, 8), features=FEATURES, sharing=sharing, variant=variant, coupling=coupling
    ).eval()
    image, features = image_of(made), features_of(made)
    latents = made.encode(image, features)
    assert [latent.shape[1:] for latent in latents] == made.latent_shapes
    assert made.latent_shapes == [(6, 4, 4), (24, 2, 2)]
    assert torch.equal(made.decode(latents, features), image)
    assert not torch.equal(made.decode(latents, features + 1), image)


def test_initialising_makes_activations_standard_once_and_for_all():
    made = flow(shake=0.0, levels=16)
    image = image_of(made, 64) // 8  # dark
    made.initialise(image, generator=torch.Generator().manual_seed(0))
    latents = torch.cat([latent.flatten() for latent in made.encode(image)])
    assert latents.mean().abs() < 0.1 and 0.9 < latents.std() < 1.1
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made.initialise(image + 8)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    other = flow(shake=0.0)
    other.load_state_dict(before)
    other.initialise(image + 8)  # the buffer came with the weights
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_sampling_is_one_pass_whatever_the_size_and_temperature_narrows_it(monkeypatch):
    made = flow(shake=0.0).eval()
    calls = []
    inverse = Stage.inverse
    monkeypatch.setattr(Stage, "inverse", lambda *arguments: calls.append(1) or inverse(*arguments))
    drawn = made.sample(5, temperature=0.0)
    assert len(calls) == len(made.stages) == 2
    assert drawn.shape == (5, 1, 8, 8) and drawn.dtype == torch.uint8
    assert (drawn == drawn[:1]).all()
    wide = made.sample(50, temperature=0.1, generator=torch.Generator().manual_seed(0))
    again = made.sample(50, temperature=0.1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(wide, again) and wide.float().std() > 0


@pytest.mark.parametrize(("shape", "scales"), [((4, 10, 10), 1), ((1, 32, 32), 3), ((3, 8, 4), 2)])
def test_flows_take_any_size_that_can_be_halved(shape, scales):
    made = flow(shape, levels=2, features=FEATURES, scales=scales, dtype=torch.float32)
    image, features = image_of(made), features_of(made)
    assert made.log_prob(image, features).shape == (3,)
    assert made.sample(3, features).shape == (3, *shape)


def test_wrong_images_and_missing_features_are_named():
    with pytest.raises(ValueError, match=r"image: expected \(N, 1, 8, 8\), got \(2, 8, 8, 1\)"):
        flow().log_prob(torch.zeros(2, 8, 8, 1))
    with pytest.raises(ValueError, match="expected \\(N, F\\), got None"):
        made = flow(features=FEATURES)
        made.log_prob(image_of(made))
