import math

import pytest
import torch
from pydantic import ValidationError

from mbrl.world_model.decoders import sampling
from mbrl.world_model.decoders.pixelcnn import PixelCNNDecoder, from_blocks
from mbrl.world_model.decoders.sampling import (
    SAMPLERS,
    count_fixed_point,
    downstream,
    sample_blocks,
)
from mbrl.world_model.settings import DecoderSettings

FEATURES, LEVELS, N = 6, 4, 3
FAST = sorted(set(SAMPLERS) - {"naive"})


def decoder(shape, **settings):
    """A decoder whose weights are all random, the marginal too."""
    small = {"channels": 6, "map_channels": 4, "hidden": 8, "embedding": 3, "head_units": 4}
    made = PixelCNNDecoder(shape, LEVELS, FEATURES, DecoderSettings(**{**small, **settings}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
        if made.marginal is not None:
            frequency = torch.rand(made.marginal.frequency.shape, generator=generator)
            made.marginal.frequency.copy_(frequency / frequency.sum(1, keepdim=True))
    return made.eval()


def drawing(made, n=N, seed=1):
    """Features and noise for n frames."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, FEATURES, generator=generator)
    return features, made.gumbel(n, features.device, generator)


def expect_same_frames(made, features, noise):
    expected = sample_blocks(made, "naive", features, noise)
    assert expected.dtype == torch.uint8
    assert expected.float().std() > 0.3  # blank frames would prove nothing
    for sampler in FAST:
        drawn = sample_blocks(made, sampler, features, noise)
        assert drawn.dtype == torch.uint8 and drawn.shape == expected.shape
        assert torch.equal(drawn, expected), sampler


@pytest.mark.parametrize("marginal", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layers", [1, 2, 3, 5, 8])
def test_all_samplers_draw_the_same_frames_from_blocks(layers, channels, marginal):
    made = decoder((channels, 12, 10), layers=layers, block=2, marginal=marginal)
    expect_same_frames(made, *drawing(made))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layers", [1, 2, 3, 5, 8])
def test_all_samplers_draw_the_same_frames_from_single_pixels(layers, channels):
    made = decoder((channels, 12, 10) if channels == 1 else (channels, 5, 6), layers=layers)
    expect_same_frames(made, *drawing(made, n=2))


@pytest.mark.parametrize("shape", [(1, 3, 16), (1, 16, 3), (1, 1, 9), (1, 9, 1)])
def test_all_samplers_draw_the_same_frames_of_odd_shapes(shape):
    made = decoder(shape, layers=2)
    expect_same_frames(made, *drawing(made))


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_the_setting_chooses_the_sampler_and_changes_no_frame(sampler, monkeypatch):
    used, sample = [], SAMPLERS[sampler]

    def spy(*arguments):
        used.append(sampler)
        return sample(*arguments)

    made = decoder((1, 6, 4), sampler=sampler)
    monkeypatch.setitem(SAMPLERS, sampler, spy)
    features, _ = drawing(made)
    drawn = made.sample(features, torch.Generator().manual_seed(3))
    noise = made.gumbel(N, features.device, torch.Generator().manual_seed(3))
    assert used == [sampler]
    assert drawn.shape == (N, 1, 6, 4)
    assert torch.equal(drawn, from_blocks(sample_blocks(made, "naive", features, noise), 1, 1))


def test_an_unknown_sampler_is_refused_and_fixed_point_is_the_default():
    with pytest.raises(ValidationError, match="sampler"):
        DecoderSettings(sampler="slow")
    assert DecoderSettings().sampler == "fixed_point"


@pytest.mark.parametrize("sampler", FAST)
def test_every_sampler_is_exact_within_bfloat16_autocast_because_it_computes_in_float32(sampler):
    made = decoder((1, 12, 10), layers=2, block=2)
    features, noise = drawing(made, n=20)
    expected = sample_blocks(made, "cached", features, noise)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sample_blocks(made, sampler, features, noise), expected)
        assert torch.equal(
            sample_blocks(made, sampler, features.bfloat16().float(), noise),
            (sample_blocks(made, "cached", features.bfloat16(), noise)),
        )


@pytest.mark.parametrize("sampler", FAST)
def test_a_frame_does_not_depend_on_the_others_in_its_batch(sampler):
    made = decoder((1, 8, 8), layers=3)
    features, noise = drawing(made, n=5)
    together = sample_blocks(made, sampler, features, noise)
    for index in range(5):
        alone = sample_blocks(made, sampler, features[index : index + 1], noise[index : index + 1])
        assert torch.equal(alone[0], together[index])


def test_downstream_by_hand():
    changed = torch.zeros(1, 5, 8, dtype=torch.bool)
    changed[0, 1, 3] = True
    expected = [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert downstream(changed, 2)[0].int().tolist() == expected


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_downstream_is_where_logits_change_when_a_block_does(layers):
    made = decoder((1, 12, 22), layers=layers, block=2)
    features, _ = drawing(made, n=1)
    blocks = torch.randint(LEVELS, (1, 6, 11, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        conditions = made._conditions(features)
        for place in ((0, 0), (0, 10), (1, 5), (5, 3)):
            other = blocks.clone()
            other[0, *place] = (other[0, *place] + 1) % LEVELS
            moved = made._logits(other, conditions) - made._logits(blocks, conditions)
            changed = torch.zeros(1, 6, 11, dtype=torch.bool)
            changed[0, *place] = True
            moved[0, *place] = 0  # sub-pixels of the block itself are drawn in order anyway
            seen = moved.abs().flatten(3).amax(3) > 1e-6
            expected = downstream(changed, layers + 1)
            assert not (seen & ~expected).any()
            if layers < 3:  # the farthest influences of deep random stacks drown in rounding
                assert torch.equal(seen, expected)


def test_fixed_point_draws_every_block_once_and_then_only_what_may_have_changed():
    made = decoder((1, 16, 16), layers=2)
    features, noise = drawing(made)
    with torch.no_grad():
        _, passes = count_fixed_point(made, features, noise)
        assert passes[0] == N * 256 and len(passes) <= 257
        assert sum(passes) < 20 * N * 256
        for name, weight in made.named_parameters():  # now no block sees another
            if name.startswith(("vertical_in.w", "horizontal_in.w")):
                weight.zero_()
            if name.startswith(("local", "global", "head.context")):
                weight.zero_()
        _, passes = count_fixed_point(made, features, noise)
        assert passes == [N * 256]  # the guess was right


def test_large_batches_are_drawn_in_parts_without_any_difference(monkeypatch):
    made = decoder((1, 6, 4), layers=2)
    features, noise = drawing(made, n=7)
    whole = sample_blocks(made, "fixed_point", features, noise)
    monkeypatch.setattr(sampling, "CELLS_AT_ONCE", 2 * 24 + 1)
    assert torch.equal(sample_blocks(made, "fixed_point", features, noise), whole)


@pytest.mark.parametrize("sampler", FAST)
def test_frequencies_follow_the_likelihood(sampler):
    made = decoder((1, 1, 2), layers=1)
    values = torch.cartesian_prod(torch.arange(LEVELS), torch.arange(LEVELS)).to(torch.uint8)
    images, n = values.view(-1, 1, 1, 2), 20_000
    feature = torch.randn(1, FEATURES, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        probs = made.log_prob(images, feature.expand(len(images), -1)).exp()
    assert probs.sum().item() == pytest.approx(1, abs=1e-5)
    noise = made.gumbel(n, feature.device, torch.Generator().manual_seed(5))
    drawn = sample_blocks(made, sampler, feature.expand(n, -1), noise).flatten(1).long()
    counts = torch.bincount(drawn[:, 0] * LEVELS + drawn[:, 1], minlength=len(images)) / n
    assert ((counts - probs).abs() <= 4 * (probs * (1 - probs) / n).sqrt() + 1e-3).all()


def test_samplers_leave_no_gradients():
    made = decoder((1, 4, 4))
    features, noise = drawing(made)
    for sampler in SAMPLERS:
        assert not sample_blocks(made, sampler, features.requires_grad_(), noise).requires_grad


def test_gumbel_noise_has_the_mean_and_spread_of_the_distribution():
    noise = decoder((1, 16, 16)).gumbel(50, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert noise.shape == (50, 16, 16, 1, LEVELS)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)  # Euler's constant
    assert noise.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.02)
