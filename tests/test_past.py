"""What was seen before is subtracted from frames: the same in training, measuring and acting."""

import numpy as np
import pytest
import torch
from simple_world import ACTIONS, generator, make, random_batch
from tiny import model_settings

from mbrl.acting import LatentPolicy
from mbrl.world_model.encoder import Encoder, MeanFrame
from mbrl.world_model.latent import Latent
from mbrl.world_model.past import LONGEST, Past, before_each
from mbrl.world_model.settings import EncoderSettings

PAST = {"subtract_past": True}


def pixels(*values: float) -> torch.Tensor:
    """One-pixel frames: (N, 1, 1, 1)."""
    return torch.tensor(values).view(-1, 1, 1, 1)


def past_of(values, is_first, expected=0.5):
    """`before_each` of one sequence of one-pixel frames, as a list."""
    frames = pixels(*values).unsqueeze(0)
    first = torch.tensor([is_first])
    return before_each(frames, first, torch.tensor(expected).view(1, 1, 1)).flatten().tolist()


def test_every_frame_has_the_mean_of_those_before_it():
    means = past_of([1.0, 2.0, 6.0, 3.0], [True, False, False, False])
    assert means == pytest.approx([0.5, 1.0, 1.5, 3.0])


def test_an_episode_that_starts_inside_a_sequence_has_no_past():
    means = past_of([1.0, 2.0, 6.0, 3.0, 3.0], [False, False, True, False, False])
    assert means == pytest.approx([0.5, 1.0, 0.5, 6.0, 4.5])


def test_a_long_past_follows_newer_frames():
    past = Past(pixels(0.0), torch.tensor([float(LONGEST)])).after(pixels(1.0))
    assert past.mean.item() == pytest.approx(1 / LONGEST) and past.count.item() == LONGEST
    assert Past(pixels(0.0), torch.tensor([1.0])).after(pixels(1.0)).mean.item() == 0.5


def test_sequences_start_anew_by_themselves():
    past = Past(pixels(2.0, 3.0), torch.tensor([4.0, 5.0]))
    after = past.restart(torch.tensor([False, True]), torch.tensor([[[9.0]]]))
    assert after.mean.flatten().tolist() == [2, 9] and after.count.tolist() == [4, 0]


def test_what_is_left_of_frames_is_divided_by_its_own_deviation():
    mean = MeanFrame((1, 1, 1), floor=0.1)
    mean.update(pixels(1.0, 1.0), pixels(0.4, 0.2))  # 0.6 and 0.8 are left: 0.5 ** 0.5
    assert mean(pixels(1.0), pixels(0.5)).item() == pytest.approx(0.5 / 0.5**0.5)
    still = MeanFrame((1, 1, 1), floor=0.1)
    still.update(pixels(1.0), pixels(1.0))
    assert still(pixels(1.0), pixels(0.98)).item() == pytest.approx(0.02 / 0.1)


def test_only_an_encoder_that_subtracts_the_past_expects_something_of_a_first_frame():
    frames = torch.full((2, 1, 8, 8), 0.25)
    for settings, expects in ((PAST, True), ({}, False)):
        encoder = Encoder((1, 8, 8), 4, EncoderSettings(channels=(4,), hidden=8, **settings))
        encoder.see(frames, torch.zeros_like(frames) if expects else None)
        expected = encoder.expected
        assert torch.equal(expected, frames[0]) if expects else expected is None
    assert make(encoder=PAST).initial(3, torch.device("cpu")).past.count.tolist() == [0, 0, 0]


def test_a_past_that_is_missing_or_not_subtracted_is_an_error():
    frames = torch.zeros(1, 1, 8, 8)
    for settings, before in ((PAST, None), ({}, frames)):
        encoder = Encoder((1, 8, 8), 4, EncoderSettings(channels=(4,), hidden=8, **settings))
        for call in (encoder, encoder.see):
            with pytest.raises(ValueError, match="as subtract_past is"):
                call(frames, before=before)


def seen_once(model):
    """Has its mean frame from one batch; and that batch."""
    batch = random_batch(batch=2, length=3)
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
    latent = model.initial(1, torch.device("cpu"))
    expected = latent.past.mean.clone()
    batch.obs[:] = 1 - batch.obs
    model.train().loss(batch, generator())
    assert torch.equal(latent.past.mean, expected)
    assert not torch.equal(model.initial(1, torch.device("cpu")).past.mean, expected)


def test_acting_shows_the_encoder_what_training_shows_it(monkeypatch):
    """Over more rows than the mean reaches back, with episodes that start in between."""
    model, _ = seen_once(make(bf16=False, encoder={**PAST, "pixel_floor": 0.05}))
    batch = random_batch(batch=2, length=LONGEST + 8)
    batch.is_first[0, 1:] = False
    shown = []
    forward = model.encoder.mean_frame.forward
    monkeypatch.setattr(
        model.encoder.mean_frame, "forward", lambda *args: shown.append(forward(*args)) or shown[-1]
    )
    model.filter(batch, generator())
    (trained,) = shown
    shown.clear()
    latent = model.initial(2, torch.device("cpu"))
    for t in range(batch.shape[1]):
        row = (
            torch.as_tensor(part[:, t]) for part in (batch.prev_action, batch.obs, batch.is_first)
        )
        latent = model.observe(latent, *row)
    assert batch.is_first[1, 1:].any()
    assert torch.equal(torch.stack(shown, 1), trained.unflatten(0, batch.shape))


@pytest.mark.parametrize("posterior", ["frame", "recurrent"])
def test_a_background_that_stays_is_told_once(posterior):
    """Two sequences, the same but for a background: only the codes of their first frames differ."""
    model = make(bf16=False, posterior=posterior, encoder=PAST, hidden=4).eval()
    if posterior == "recurrent":  # let it not look at the state, in which backgrounds differ
        torch.nn.init.zeros_(model.encoder.dense.weight[:, -4:])
    batch = random_batch(batch=2, length=5)
    batch.obs[1] = batch.obs[0]
    batch.obs[:, :, :4] = 0
    batch.obs[1, :, :4] = 1
    batch.is_first[:] = [True, False, False, False, False]
    for whole, differs in ((model, [True] + [False] * 4), (without_past(model), [True] * 5)):
        posteriors = whole.filter(batch, generator()).posterior
        told = [
            not torch.allclose(one, other, atol=1e-4)
            for one, other in zip(*posteriors, strict=True)
        ]
        assert told == differs


def without_past(model):
    """The same weights, in a model that subtracts the mean frame only."""
    settings = model.settings
    plain = make(
        bf16=False, posterior=settings.posterior, encoder={"subtract_past": False}, hidden=4
    )
    plain.load_state_dict(model.state_dict())
    return plain.eval()


def test_whole_frames_can_be_kept_beside_what_is_new():
    encoder = Encoder(
        (1, 8, 8), 4, EncoderSettings(channels=(4,), hidden=8, **PAST, keep_whole=True)
    )
    frames = torch.rand(3, 1, 8, 8, generator=generator())
    before = torch.rand(3, 1, 8, 8, generator=generator(1))
    encoder.see(frames, before)
    assert encoder.convs[0].in_channels == 2
    shown = []
    encoder.convs.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    encoder(frames, before=before)
    torch.testing.assert_close(shown[0], torch.cat([frames - before, frames - frames.mean(0)], 1))


def test_observing_needs_to_know_what_was_seen():
    model, batch = make(encoder=PAST), random_batch(batch=2)
    forgot = Latent(torch.zeros(2, model.settings.hidden), torch.zeros(2, model.code.size))
    action, obs, first = (
        torch.as_tensor(getattr(batch, name)[:, 0]) for name in ("prev_action", "obs", "is_first")
    )
    with pytest.raises(ValueError, match="latent with a past, of initial or observe"):
        model.observe(forgot, action, obs, first)


def test_whole_frames_are_kept_beside_something():
    with pytest.raises(ValueError, match="keep_whole: true needs"):
        model_settings(encoder={"keep_whole": True})


@pytest.mark.parametrize("encoder", [{"kind": "world_models"}, {"subtract_mean": False}])
def test_the_past_needs_a_mean_frame_for_first_frames(encoder):
    with pytest.raises(ValueError, match="subtract_past: true needs"):
        model_settings(encoder={**encoder, **PAST})


class Still:
    """Always the same action."""

    def act(self, features, *, explore, generator):
        return torch.zeros(len(features), dtype=torch.int64)


def test_an_actor_that_goes_on_remembers_what_it_saw():
    model, batch = make(encoder=PAST).eval(), random_batch(batch=2, length=6)
    batch.is_first[:] = [True, False, False, False, False, False]

    def policy():
        made = LatentPolicy(model, Still, ACTIONS, 0, torch.device("cpu"))
        made.reset(2)
        return made

    whole, restored = policy(), policy()
    restored.load_state_dict(policy().state_dict())
    for t in range(6):
        if t == 3:
            restored.load_state_dict(whole.state_dict())
        for each in (whole, restored)[: 1 if t < 3 else 2]:
            each.act(batch.obs[:, t], batch.is_first[:, t])
    assert torch.equal(restored.latent.past.mean, whole.latent.past.mean)
    assert torch.equal(restored.latent.code, whole.latent.code)
    assert whole.latent.past.count.tolist() == [6, 6]
