import pytest
import torch

from mbrl.world_model.encoder import Encoder, MeanFrame
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
@pytest.mark.parametrize("norm", [True, False])
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
    encoder = Encoder((1, 8, 8), 4, EncoderSettings(channels=(4,), hidden=8, subtract_mean=False))
    encoder.see(torch.rand(2, 1, 8, 8))
    assert not dict(encoder.named_buffers())
