import pytest
import torch

from mbrl.world_model.encoder import Encoder, MeanFrame, Standardised
from mbrl.world_model.settings import EncoderSettings


def test_mean_frame_is_the_mean_of_what_it_saw():
    mean = MeanFrame((1, 1, 2))
    for frame in ([0.0, 1.0], [1.0, 1.0], [0.5, 1.0]):
        mean.update(torch.tensor(frame).view(1, 1, 1, 2))
    torch.testing.assert_close(mean.mean.flatten(), torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(mean(torch.ones(1, 1, 1, 2)).flatten(), torch.tensor([0.5, 0.0]))


def test_mean_frame_becomes_a_moving_mean():
    mean = MeanFrame((1, 1, 1), slowest_rate=0.5)
    for value in (0.0, 0.0, 1.0, 1.0):  # 0, 0, 0.5, 0.75
        mean.update(torch.full((2, 1, 1, 1), value))
    assert mean.mean.item() == pytest.approx(0.75)


def test_encoder_sees_the_frame_minus_the_mean():
    torch.manual_seed(0)
    encoder = Encoder((1, 8, 8), 6, EncoderSettings(channels=(4, 8), hidden=16))
    frames = torch.rand(3, 1, 8, 8)
    before = encoder(frames)
    encoder.see(torch.full((1, 1, 8, 8), 0.25))
    torch.testing.assert_close(encoder(frames + 0.25), before)


def test_mean_frame_is_saved_with_the_weights():
    settings = EncoderSettings(channels=(4,), hidden=8)
    encoder, other = (Encoder((1, 8, 8), 6, settings) for _ in range(2))
    encoder.see(torch.rand(5, 1, 8, 8))
    other.load_state_dict(encoder.state_dict())
    frames = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(other(frames), encoder(frames))


@pytest.mark.parametrize("shape", [(4, 10, 10), (1, 16, 16), (3, 64, 64), (1, 21, 84)])
@pytest.mark.parametrize("norm", ["frame", "map", "none"])
def test_encoder_fits_frames_of_any_size(shape, norm):
    encoder = Encoder(shape, 12, EncoderSettings(channels=(4, 4, 4), hidden=8, norm=norm))
    assert encoder(torch.rand(2, *shape)).shape == (2, 12)


def test_small_frames_keep_their_resolution_in_the_first_layer():
    """A one-pixel object and its neighbour pixel must not fall into the same cell."""
    encoder = Encoder((1, 10, 10), 4, EncoderSettings(channels=(3, 5), hidden=8))
    first, last = encoder.convs[0], encoder.convs[-3]
    assert first.stride == (1, 1) and last.stride == (2, 2)


def test_context_is_part_of_the_posterior():
    encoder = Encoder((1, 8, 8), 4, EncoderSettings(channels=(4,), hidden=8), context=3)
    frame = torch.rand(1, 1, 8, 8)
    one, two = encoder(frame, torch.zeros(1, 3)), encoder(frame, torch.ones(1, 3))
    assert not torch.allclose(one, two)


def test_encoder_without_mean_frame_has_no_state():
    settings = {"channels": (4,), "hidden": 8, "subtract_mean": False}
    encoder = Encoder((1, 8, 8), 4, EncoderSettings(**settings))
    encoder.see(torch.rand(2, 1, 8, 8))
    assert not dict(encoder.named_buffers())


def test_pixels_are_divided_by_their_deviation_but_at_least_by_the_floor():
    mean = MeanFrame((1, 1, 3), floor=0.1)
    mean.update(torch.tensor([[0.0, 0.5, 0.0], [1.0, 0.5, 0.1]]).view(2, 1, 1, 3))
    # deviations 0.5, 0 and 0.05: the last two are below the floor
    out = mean(torch.tensor([1.0, 0.6, 0.1]).view(1, 1, 1, 3)).flatten()
    torch.testing.assert_close(out, torch.tensor([0.5 / 0.5, 0.1 / 0.1, 0.05 / 0.1]))


def test_raw_parameters_are_standardised_across_frames_and_the_running_statistics_kept():
    layer = Standardised(2, deviation=3.0, slowest_rate=0.25)
    raw = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 6.0]])
    out = layer.train()(raw)  # means 3 and 2; variances 8/3 and 8
    torch.testing.assert_close(out[:, 0], 3 * torch.tensor([-2.0, 0.0, 2.0]) / (8 / 3) ** 0.5)
    torch.testing.assert_close(out[:, 1], 3 * torch.tensor([-2.0, -2.0, 4.0]) / 8**0.5)
    torch.testing.assert_close(layer.eval()(raw), out)  # the first batch is all that was seen
    layer.train()(raw + 4)  # the second counts for half
    torch.testing.assert_close(layer.mean, torch.tensor([5.0, 4.0]))
    assert layer.eval()(torch.tensor([[5.0, 4.0]])).tolist() == [[0.0, 0.0]]


def test_one_row_alone_is_standardised_with_the_running_statistics():
    layer = Standardised(2, deviation=1.0)
    assert torch.isfinite(layer.train()(torch.tensor([[1.0, 2.0]]))).all() and layer.batches == 0


def test_a_fresh_encoder_already_tells_frames_apart():
    """Without standardising, its logits differ by hundredths: the code would say nothing."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.zeros(256, 1, 16, 16)
    rows, columns = torch.randint(16, (2, 256), generator=generator)
    frames[torch.arange(256), 0, rows, columns] = 1.0
    spread = {}
    for deviation in (None, 2.0):
        torch.manual_seed(0)
        settings = EncoderSettings(channels=(8, 16), hidden=32, deviation=deviation)
        encoder = Encoder((1, 16, 16), 64, settings).train()
        encoder.see(frames)
        spread[deviation] = encoder(frames).std(0, correction=0).mean().item()
    assert spread[None] < 0.5 and spread[2.0] == pytest.approx(2.0, abs=1e-2)


def test_maps_normalised_by_themselves_bring_out_a_small_object_more_than_all_together():
    frame = torch.zeros(2, 1, 16, 16)
    frame[1, 0, 5, 9] = 1.0
    moved = {}
    for norm in ("frame", "map"):
        torch.manual_seed(0)
        settings = EncoderSettings(channels=(8, 16), hidden=32, norm=norm, subtract_mean=False)
        out = Encoder((1, 16, 16), 64, settings).eval()(frame)
        moved[norm] = (out[1] - out[0]).norm() / out[0].norm()
    assert moved["map"] > 2 * moved["frame"]
