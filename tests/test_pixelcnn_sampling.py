import numpy as np
import pytest
import torch

from mbrl.world_model.decoders import pixelcnn
from mbrl.world_model.decoders.pixelcnn import (
    PixelCNNDecoder,
    downstream,
    fixed_point,
    from_blocks,
    sample_blocks,
)
from mbrl.world_model.decoders.settings import PixelCNNSettings

FEATURES, LEVELS, N = 6, 4, 3


def decoder(shape, **settings):
    """A decoder whose weights are all random, the marginal too."""
    small = {"channels": 6, "map_channels": 4, "hidden": 8, "embedding": 3, "head_units": 4}
    made = PixelCNNDecoder(shape, LEVELS, FEATURES, PixelCNNSettings(**{**small, **settings}))
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


@torch.no_grad()
def one_by_one(made, features, noise):
    """The reference: one full pass for every sub-pixel."""
    conditions = made.conditions(features)
    blocks = torch.zeros(noise.shape[:-1], dtype=torch.uint8, device=noise.device)
    for row, column, s in np.ndindex(*blocks.shape[1:]):
        scores = made.logits(blocks, conditions) + noise
        blocks[:, row, column, s] = scores[:, row, column, s].argmax(-1).to(torch.uint8)
    return blocks


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        *(
            ((channels, 12, 10), {"layers": layers, "block": 2, "marginal": marginal})
            for channels in (1, 3)
            for layers, marginal in ((1, True), (2, False), (3, True), (5, True), (8, False))
        ),
        *(((1, 12, 10), {"layers": layers}) for layers in (1, 2, 3, 5, 8)),
        *(((3, 5, 6), {"layers": layers}) for layers in (1, 3, 8)),
        *((odd, {}) for odd in ((1, 3, 16), (1, 16, 3), (1, 1, 9), (1, 9, 1))),
    ],
)
def test_frames_are_those_that_are_drawn_one_sub_pixel_after_the_other(shape, settings):
    made = decoder(shape, **settings)
    features, noise = drawing(made)
    expected = one_by_one(made, features, noise)
    assert expected.float().std() > 0.3  # blank frames would prove nothing
    drawn = sample_blocks(made, features, noise)
    assert drawn.dtype == torch.uint8 and torch.equal(drawn, expected)


def test_samples_are_images_and_repeat_with_their_generator():
    made = decoder((1, 6, 4))
    features, _ = drawing(made)
    drawn = made.sample(features, torch.Generator().manual_seed(3))
    noise = made.gumbel(N, features.device, torch.Generator().manual_seed(3))
    assert torch.equal(drawn, from_blocks(one_by_one(made, features, noise), 1, 1))
    assert drawn.shape == (N, 1, 6, 4) and not made.sample(features.requires_grad_()).requires_grad


def test_samples_are_exact_within_bfloat16_autocast_because_they_are_drawn_in_float32():
    made = decoder((1, 12, 10), layers=2, block=2)
    features, noise = drawing(made, n=20)
    expected = one_by_one(made, features, noise)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sample_blocks(made, features, noise), expected)
        assert torch.equal(
            sample_blocks(made, features.bfloat16().float(), noise),
            sample_blocks(made, features.bfloat16(), noise),
        )


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_downstream_is_where_logits_change_when_a_block_does(layers):
    made = decoder((1, 12, 22), layers=layers, block=2)
    features, _ = drawing(made, n=1)
    blocks = torch.randint(LEVELS, (1, 6, 11, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        conditions = made.conditions(features)
        for place in ((0, 0), (0, 10), (1, 5), (5, 3)):
            other = blocks.clone()
            other[0, *place] = (other[0, *place] + 1) % LEVELS
            moved = made.logits(other, conditions) - made.logits(blocks, conditions)
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
        _, passes = fixed_point(made, features, noise)
        assert passes[0] == N * 256 and len(passes) <= 257
        assert sum(passes) < 20 * N * 256
        for name, weight in made.named_parameters():  # now no block sees another
            if name.startswith(("vertical_in.w", "horizontal_in.w")):
                weight.zero_()
            if name.startswith(("local", "global", "head.context")):
                weight.zero_()
        _, passes = fixed_point(made, features, noise)
        assert passes == [N * 256]  # the guess was right


@pytest.mark.parametrize("images", [1, 2])
def test_large_batches_are_drawn_in_parts_without_any_difference(monkeypatch, images):
    made = decoder((1, 6, 4), layers=2)
    features, noise = drawing(made, n=7)
    whole = sample_blocks(made, features, noise)
    monkeypatch.setattr(pixelcnn, "CELLS_AT_ONCE", images * 24 + 1)
    assert torch.equal(sample_blocks(made, features, noise), whole)
