"""Decoders: exact likelihoods, exact sampling, and objects where the condition says."""

import itertools
import math

import pytest
import torch
from torch import nn

from mbrl.errors import ConfigError
from mbrl.world_model.decoders.base import PixelMarginal
from mbrl.world_model.decoders.deconv import DeconvDecoder
from mbrl.world_model.decoders.pixelcnn import (
    PixelCNNDecoder,
    from_blocks,
    to_blocks,
)
from mbrl.world_model.decoders.settings import DECODERS, DeconvSettings, PixelCNNSettings

FEATURES = 6


def shaken(module, scale=0.5):
    """The module with all weights random: layers that start at zero would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return module.eval()


def pixelcnn(shape, levels, **settings):
    settings = {"channels": 6, "map_channels": 4, "hidden": 8, **settings}
    return shaken(PixelCNNDecoder(shape, levels, FEATURES, PixelCNNSettings(**settings)))


def deconv(shape, levels, **settings):
    settings = {"channels": 4, "hidden": 8, **settings}
    return shaken(DeconvDecoder(shape, levels, FEATURES, DeconvSettings(**settings)))


def made(kind, shape, **settings):
    """A fresh decoder of binary images, as a config names it."""
    chosen = DECODERS.kinds[kind].settings(**settings)
    return DECODERS.made_by(chosen)(shape, 2, FEATURES, chosen)


def every_image(shape, levels):
    count = shape[0] * shape[1] * shape[2]
    values = list(itertools.product(range(levels), repeat=count))
    return torch.tensor(values, dtype=torch.uint8).view(-1, *shape)


def logits_of(decoder, image, features):
    """(N, h, w, S, V), on the grid of blocks."""
    return decoder.logits(to_blocks(image, decoder.block), decoder.conditions(features))


@pytest.mark.parametrize("make", [pixelcnn, deconv])
@pytest.mark.parametrize(
    ("shape", "levels"), [((1, 2, 2), 2), ((2, 1, 2), 2), ((1, 1, 3), 4), ((3, 1, 1), 3)]
)
def test_probabilities_of_all_images_sum_to_one(make, shape, levels):
    images = every_image(shape, levels)
    decoder, features = make(shape, levels), torch.randn(1, FEATURES).expand(len(images), -1)
    log_prob = decoder.log_prob(images, features)
    assert log_prob.shape == (len(images),)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-5)


def influences(decoder, shape, levels):
    """[changed pixel, logit] table: which logits change if one (row, column, channel) changes.

    Pixels and logits are in the order of generation: blocks by rows, and in each its pixels by
    rows, then channels.
    """
    channels, height, width = shape
    generator = torch.Generator().manual_seed(2)
    base = torch.randint(levels, (1, *shape), generator=generator, dtype=torch.uint8)
    numbers = torch.arange(channels * height * width).view(1, *shape)
    order = to_blocks(numbers, decoder.block).flatten()
    changed = base.repeat(len(order), 1, 1, 1)
    flat = changed.flatten(1)
    index = torch.arange(len(order))
    flat[index, order] = (flat[index, order] + 1) % levels
    features = torch.randn(1, FEATURES, generator=generator)
    images = torch.cat([base, changed])
    logits = logits_of(decoder, images, features.expand(len(images), -1))
    moved = ((logits[1:] - logits[:1]).abs() > 1e-5).any(-1).flatten(1)
    places = [(n // width % height, n % width, n // (width * height)) for n in order.tolist()]
    return places, moved


@pytest.mark.parametrize(
    ("shape", "block"),
    [((2, 5, 4), 1), ((3, 3, 6), 1), ((1, 6, 6), 1), ((1, 6, 6), 2), ((2, 6, 6), 3)],
)
def test_pixelcnn_never_looks_at_a_later_pixel_or_channel_or_at_the_pixel_itself(shape, block):
    places, moved = influences(pixelcnn(shape, 3, layers=3, block=block), shape, 3)
    for index in range(len(places)):
        assert not moved[index, : index + 1].any(), places[index]
        same_row = index and places[index - 1][0] == places[index][0]
        if same_row:  # and it does see the one before it
            assert moved[index - 1, index], places[index]


@pytest.mark.parametrize("layers", [1, 2])
def test_pixelcnn_receptive_field_is_what_its_docstring_says(layers):
    shape, reach = (1, 7, 9), layers + 1
    places, moved = influences(pixelcnn(shape, 2, layers=layers), shape, 2)
    target = places.index((6, 4, 0))
    seen = {place[:2] for index, place in enumerate(places) if moved[index, target]}
    rows_up = {6 - row for row, _ in seen}
    assert max(rows_up) == reach
    assert {column for row, column in seen if row == 6} == set(range(4 - reach, 4))
    # one row up it sees as far to the right as its vertical stack is deep
    assert max(column for row, column in seen if row == 5) == 4 + reach


@pytest.mark.parametrize("block", [1, 2, 3])
def test_blocks_of_pixels_become_the_same_image_again(block):
    image = torch.arange(2 * 6 * 6).view(1, 2, 6, 6)
    assert torch.equal(from_blocks(to_blocks(image, block), 2, block), image)


def test_an_image_that_does_not_divide_into_blocks_is_refused():
    with pytest.raises(ConfigError, match=r"decoder.block.*got 4 for 10 x 10"):
        pixelcnn((1, 10, 10), 2, block=4)


@pytest.mark.parametrize("make", [pixelcnn, deconv])
def test_sample_frequencies_follow_the_likelihood(make):
    decoder, shape = make((2, 1, 2), 2), (2, 1, 2)
    features = torch.randn(1, FEATURES, generator=torch.Generator().manual_seed(3))
    images, n = every_image(shape, 2), 20_000
    probs = decoder.log_prob(images, features.expand(16, -1)).exp().detach()
    drawn = decoder.sample(features.expand(n, -1), torch.Generator().manual_seed(5))
    powers = 2 ** torch.arange(3, -1, -1)
    counts = torch.bincount((drawn.flatten(1).long() * powers).sum(1), minlength=16) / n
    assert ((counts - probs).abs() <= 4 * (probs * (1 - probs) / n).sqrt() + 1e-3).all()


def place_objects(decoder, steps, side):
    """Train on one-pixel objects whose place is coded in the features; share placed rightly."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    eye = torch.eye(side)

    def draw(n):
        rows, columns = torch.randint(side, (2, n), generator=generator)
        image = torch.zeros(n, 1, side, side, dtype=torch.uint8)
        image[torch.arange(n), 0, rows, columns] = 1
        return image, torch.cat([eye[rows], eye[columns]], 1)

    decoder.train()
    for _ in range(steps):
        image, features = draw(64)
        optimizer.zero_grad()
        (-decoder.log_prob(image, features).mean()).backward()
        optimizer.step()
    decoder.eval()
    image, features = draw(200)
    return (decoder.sample(features, generator) == image).flatten(1).all(1).float().mean().item()


@pytest.mark.parametrize(
    ("decoder", "settings"),
    [
        (PixelCNNDecoder, PixelCNNSettings(channels=8, layers=1, map_channels=16, hidden=64)),
        (DeconvDecoder, DeconvSettings(channels=8, hidden=64)),
    ],
    ids=["pixelcnn", "deconv"],
)
def test_an_object_is_placed_where_the_code_says(decoder, settings):
    """PixelCNN's field (two rows) is far too small for it: the spatial map does it."""
    torch.manual_seed(0)
    assert place_objects(decoder((1, 10, 10), 2, 20, settings), 150, 10) > 0.95


def test_deconv_mse_is_the_summed_squared_error_of_intensities():
    decoder = deconv((1, 2, 2), 16, likelihood="mse")
    last = decoder.head[-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 0.2)
    image = torch.tensor([[[[0, 15], [3, 6]]]], dtype=torch.uint8)  # 0, 1, 0.2, 0.4
    log_prob = decoder.log_prob(image, torch.randn(1, FEATURES))
    assert log_prob.item() == pytest.approx(-(0.04 + 0.64 + 0.0 + 0.04), abs=1e-5)
    assert decoder.sample(torch.randn(1, FEATURES)).tolist() == [[[[3, 3], [3, 3]]]]
    nn.init.constant_(last.bias, 2.0)  # brighter than white
    assert (decoder.sample(torch.randn(1, FEATURES)) == 15).all()


@pytest.mark.parametrize("kind", ["deconv", "pixelcnn"])
@pytest.mark.parametrize("shape", [(4, 10, 10), (1, 21, 13), (3, 64, 64)])
def test_decoders_fit_images_of_any_size(kind, shape):
    decoder = made(kind, shape, channels=4, hidden=8).eval()
    features = torch.randn(2, FEATURES)
    image = torch.randint(2, (2, *shape), dtype=torch.uint8)
    assert decoder.log_prob(image, features).shape == (2,)
    if shape[1] < 64:
        assert decoder.sample(features).shape == (2, *shape)


# -- the marginal ---------------------------------------------------------------------------------


def test_marginal_is_the_frequency_of_each_level_with_a_share_of_the_uniform():
    marginal = PixelMarginal((1, 1, 2), 2, uniform_share=0.1)
    assert marginal().exp().flatten().tolist() == [0.5] * 4
    for columns in ([0, 1], [0, 1], [0, 1], [1, 1]):
        marginal.update(torch.tensor([[[columns]]]))
    expected = [0.9 * 0.75 + 0.05, 0.9 * 0.0 + 0.05, 0.9 * 0.25 + 0.05, 0.9 * 1.0 + 0.05]
    assert marginal().exp().flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["pixelcnn", "deconv"])
def test_an_untrained_decoder_starts_from_the_marginal_and_counts_in_training_only(kind):
    decoder = made(kind, (1, 2, 2), hidden=8)
    image, features = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.randn(3, FEATURES)
    image[:, 0, 1, 1] = 1
    uniform = torch.full((3,), 4 * math.log(0.5))
    torch.testing.assert_close(decoder.eval().log_prob(image, features), uniform)
    torch.testing.assert_close(decoder.eval().log_prob(image, features), uniform)
    decoder.train().log_prob(image, features)
    seen = torch.full((3,), 4 * math.log(0.99 + 0.01 / 2))
    torch.testing.assert_close(decoder.eval().log_prob(image, features), seen)
