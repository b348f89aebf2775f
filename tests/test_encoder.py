"""What encoders are shown, what they remember of earlier frames, and what they make of it."""

import numpy as np
import pytest
import torch
from simple_world import ACTIONS, generator, make, random_batch

from mbrl.acting import LatentPolicy
from mbrl.world_model.encoder import LONGEST, NormalisedEncoder, Seen
from mbrl.world_model.latent import Latent
from mbrl.world_model.normalise import MeanFrame, Standardised, follow
from mbrl.world_model.settings import NormalisedSettings

PAST = {"subtract_past": True}
CPU = torch.device("cpu")


def pixels(*values: float) -> torch.Tensor:
    """One-pixel frames: (N, 1, 1, 1)."""
    return torch.tensor(values).view(-1, 1, 1, 1)


def encoder(shape=(1, 8, 8), raw_size=6, context=0, **settings):
    torch.manual_seed(0)
    chosen = NormalisedSettings(**{"channels": (4,), "hidden": 8, **settings})
    return NormalisedEncoder(shape, raw_size, chosen, context)


# -- running statistics ---------------------------------------------------------------------------


def test_mean_frame_is_the_mean_of_what_it_saw():
    mean = MeanFrame((1, 1, 2))
    for frame in ([0.0, 1.0], [1.0, 1.0], [0.5, 1.0]):
        mean.update(torch.tensor(frame).view(1, 1, 1, 2))
    torch.testing.assert_close(mean.mean.flatten(), torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(mean(torch.ones(1, 1, 1, 2)).flatten(), torch.tensor([0.5, 0.0]))


def test_a_running_statistic_becomes_a_moving_one():
    running = torch.zeros(1)
    for batch, value in enumerate((0.0, 0.0, 1.0, 1.0)):  # 0, 0, 0.5, 0.75
        follow(running, torch.tensor([value]), torch.tensor(batch + 1.0), slowest=0.5)
    assert running.item() == pytest.approx(0.75)


def test_pixels_are_divided_by_their_deviation_but_at_least_by_the_floor():
    mean = MeanFrame((1, 1, 3), floor=0.1)
    mean.update(torch.tensor([[0.0, 0.5, 0.0], [1.0, 0.5, 0.1]]).view(2, 1, 1, 3))
    # deviations 0.5, 0 and 0.05: the last two are below the floor
    out = mean(torch.tensor([1.0, 0.6, 0.1]).view(1, 1, 1, 3)).flatten()
    torch.testing.assert_close(out, torch.tensor([0.5 / 0.5, 0.1 / 0.1, 0.05 / 0.1]))


def test_what_is_left_of_frames_is_divided_by_its_own_deviation():
    mean = MeanFrame((1, 1, 1), floor=0.1)
    mean.update(pixels(1.0, 1.0), pixels(0.4, 0.2))  # 0.6 and 0.8 are left: 0.5 ** 0.5
    assert mean(pixels(1.0), pixels(0.5)).item() == pytest.approx(0.5 / 0.5**0.5)
    still = MeanFrame((1, 1, 1), floor=0.1)
    still.update(pixels(1.0), pixels(1.0))
    assert still(pixels(1.0), pixels(0.98)).item() == pytest.approx(0.02 / 0.1)


def test_raw_parameters_are_standardised_across_frames_and_the_running_statistics_kept():
    layer = Standardised(2, deviation=3.0)
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


# -- single frames --------------------------------------------------------------------------------


def test_encoder_sees_the_frame_minus_the_mean_frame_which_is_saved_with_the_weights():
    one, frames = encoder(), torch.rand(3, 1, 8, 8)
    before = one(Seen(frames))
    one.learn(Seen(torch.full((1, 1, 8, 8), 0.25)))
    torch.testing.assert_close(one(Seen(frames + 0.25)), before)
    other = encoder()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(Seen(frames)), one(Seen(frames)))


@pytest.mark.parametrize("shape", [(4, 10, 10), (1, 16, 16), (3, 64, 64), (1, 21, 84)])
@pytest.mark.parametrize("norm", ["frame", "map", "none"])
def test_encoder_fits_frames_of_any_size_one_step_or_sequences(shape, norm):
    made = encoder(shape, 12, channels=(4, 4, 4), norm=norm).eval()
    frames = torch.rand(2, 3, *shape)
    out = made(Seen(frames))
    assert out.shape == (2, 3, 12)
    torch.testing.assert_close(out[:, 1], made(Seen(frames[:, 1])), atol=1e-5, rtol=1e-5)


def test_small_frames_keep_their_resolution_in_the_first_layer():
    """A one-pixel object and its neighbour pixel must not fall into the same cell."""
    made = encoder((1, 10, 10), channels=(3, 5))
    assert made.convs[0].stride == (1, 1) and made.convs[-3].stride == (2, 2)


def test_context_is_part_of_the_posterior():
    made, frame = encoder(context=3), Seen(torch.rand(1, 1, 8, 8))
    assert not torch.allclose(made(frame, torch.zeros(1, 3)), made(frame, torch.ones(1, 3)))


def test_a_fresh_encoder_already_tells_frames_apart():
    """Without standardising, its logits differ by hundredths: the code would say nothing."""
    frames = torch.zeros(256, 1, 16, 16)
    rows, columns = torch.randint(16, (2, 256), generator=generator())
    frames[torch.arange(256), 0, rows, columns] = 1.0
    spread = {}
    for deviation in (None, 2.0):
        made = encoder((1, 16, 16), 64, channels=(8, 16), hidden=32, deviation=deviation).train()
        made.learn(Seen(frames))
        spread[deviation] = made(Seen(frames)).std(0, correction=0).mean().item()
    assert spread[None] < 0.5 and spread[2.0] == pytest.approx(2.0, abs=1e-2)


def test_maps_normalised_by_themselves_bring_out_a_small_object_more_than_all_together():
    frame, moved = torch.zeros(2, 1, 16, 16), {}
    frame[1, 0, 5, 9] = 1.0
    small = {"channels": (8, 16), "hidden": 32, "subtract_mean": False}
    for norm in ("frame", "map"):
        out = encoder((1, 16, 16), 64, norm=norm, **small).eval()(Seen(frame))
        moved[norm] = (out[1] - out[0]).norm() / out[0].norm()
    assert moved["map"] > 2 * moved["frame"]


# -- frames minus the past ------------------------------------------------------------------------


def looking(expected=0.5):
    """An encoder of one-pixel frames, whose mean frame is `expected`."""
    made = encoder((1, 1, 1), channels=(), **PAST)
    made.mean_frame.mean.fill_(expected)
    return made


@pytest.mark.parametrize(
    ("frames", "starts", "means"),
    [
        ([1.0, 2.0, 6.0, 3.0], [0], [0.5, 1.0, 1.5, 3.0]),
        ([1.0, 2.0, 6.0, 3.0, 3.0], [2], [0.5, 1.0, 0.5, 6.0, 4.5]),
    ],
    ids=["of all before", "of this episode only"],
)
def test_every_frame_has_the_mean_of_those_before_it(frames, starts, means):
    made, values = looking(), pixels(*frames)
    first = torch.tensor([[t in starts for t in range(len(frames))]])
    seen, after = made.look(made.initial(1), values.unsqueeze(0), first)
    assert seen.before.flatten().tolist() == pytest.approx(means)
    memory = made.initial(1)
    for t, mean in enumerate(means):  # and the same step by step
        seen, memory = made.look(memory, values[t : t + 1], first[:, t])
        assert seen.before.item() == pytest.approx(mean)
    assert all(torch.equal(memory[name], after[name]) for name in after)


def test_a_long_past_follows_newer_frames():
    made, still = looking(), torch.zeros(1, LONGEST, 1, 1, 1)
    _, memory = made.look(made.initial(1), still, torch.zeros(1, LONGEST, dtype=torch.bool))
    _, memory = made.look(memory, pixels(1.0), torch.tensor([False]))
    assert memory["past_mean"].item() == pytest.approx(1 / LONGEST)
    assert memory["past_count"].item() == LONGEST


def seen_once(model):
    """Has its mean frame from one batch; and that batch."""
    batch = random_batch(batch=2, length=3)
    model.eval().loss(batch, generator())
    assert model.encoder.mean_frame.batches == 0  # measuring teaches nothing
    model.train().loss(batch, generator())
    return model.eval(), batch


def test_the_mean_frame_and_the_deviation_are_of_what_the_model_was_shown():
    model, batch = seen_once(make(encoder={**PAST, "pixel_floor": 0.05}))
    frames = batch.obs.astype(np.float32).transpose(0, 1, 4, 2, 3)
    left = frames.copy()  # nothing was expected of first frames yet
    for b in range(2):
        for t in (1, 2):
            if not batch.is_first[b, t]:
                start = max(i for i in range(t) if i == 0 or batch.is_first[b, i])
                left[b, t] -= frames[b, start:t].mean(0)
    mean = model.encoder.mean_frame
    torch.testing.assert_close(mean.mean, torch.as_tensor(frames.mean((0, 1))))
    torch.testing.assert_close(mean.square, torch.as_tensor((left**2).mean((0, 1))))


def test_a_latent_keeps_what_it_expects_while_the_mean_frame_goes_on():
    model, batch = seen_once(make(encoder=PAST))
    latent = model.initial(1, CPU)
    expected = latent.memory["past_mean"].clone()
    batch.obs[:] = 1 - batch.obs
    model.train().loss(batch, generator())
    assert torch.equal(latent.memory["past_mean"], expected)
    assert not torch.equal(model.initial(1, CPU).memory["past_mean"], expected)


@pytest.mark.parametrize("posterior", ["frame", "recurrent"])
def test_a_background_that_stays_is_coded_once(posterior):
    """Two sequences, the same but for a background: only the codes of their first frames differ."""
    shared = {"bf16": False, "posterior": posterior, "hidden": 4}
    model, plain = make(encoder=PAST, **shared).eval(), make(**shared).eval()
    if posterior == "recurrent":  # let it not look at the state, in which backgrounds differ
        torch.nn.init.zeros_(model.encoder.dense.weight[:, -4:])
    plain.load_state_dict(model.state_dict())
    batch = random_batch(batch=2, length=5)
    batch.obs[1] = batch.obs[0]
    batch.obs[:, :, :4] = 0
    batch.obs[1, :, :4] = 1
    batch.is_first[:] = [True, False, False, False, False]
    for whole, differs in ((model, [True] + [False] * 4), (plain, [True] * 5)):
        posteriors = whole.observe(whole.initial(2, CPU), *whole.inputs(batch)).posterior
        coded = [
            not torch.allclose(one, other, atol=1e-4)
            for one, other in zip(*posteriors, strict=True)
        ]
        assert coded == differs


def test_observing_needs_to_know_what_was_seen():
    model, batch = make(encoder=PAST), random_batch(batch=2)
    forgot = Latent(torch.zeros(2, model.settings.hidden), torch.zeros(2, model.code.size))
    with pytest.raises(ValueError, match="expected a memory of earlier frames"):
        model.observe(forgot, *model.inputs(batch))


class Still:
    """Always the same action."""

    def act(self, features, *, explore, generator):
        return torch.zeros(len(features), dtype=torch.int64)


def test_an_actor_that_goes_on_remembers_what_it_saw():
    model, batch = make(encoder=PAST).eval(), random_batch(batch=2, length=6)
    batch.is_first[:] = [True, False, False, False, False, False]
    whole, restored = (LatentPolicy(model, Still, ACTIONS, 0, CPU) for _ in range(2))
    for policy in (whole, restored):
        policy.reset(2)
    for t in range(6):
        if t == 3:
            restored.load_state_dict(whole.state_dict())
        for each in (whole, restored)[: 1 if t < 3 else 2]:
            each.act(batch.obs[:, t], batch.is_first[:, t])
    assert {"past_mean", "past_count"} <= whole.state_dict().keys()  # as in old checkpoints
    assert torch.equal(restored.latent.memory["past_mean"], whole.latent.memory["past_mean"])
    assert torch.equal(restored.latent.code, whole.latent.code)
    assert whole.latent.memory["past_count"].tolist() == [6, 6]
