import numpy as np
import pytest
import torch
from gymnasium import spaces
from simple_world import ACTIONS, IMAGE, generator, make, random_batch
from tiny import model_settings

from mbrl.errors import ConfigError
from mbrl.world_model.encoder import Seen
from mbrl.world_model.latent import Latent

# -- conversions ----------------------------------------------------------------------------------


def test_binary_frames_are_their_own_levels():
    model, obs = make(), torch.randint(2, (5, 8, 8, 2), dtype=torch.uint8)
    levels = model.to_levels(obs)
    assert model.levels == 2 and levels.shape == (5, 2, 8, 8)
    assert torch.equal(model.to_pixels(levels), obs)


def test_intensities_are_reduced_to_levels_and_come_back_as_their_middle():
    model = make(spaces.Box(0, 255, (8, 8, 1), np.uint8))
    obs = torch.tensor([0, 15, 16, 128, 255], dtype=torch.uint8).view(5, 1, 1, 1)
    levels = model.to_levels(obs)
    assert levels.flatten().tolist() == [0, 0, 1, 8, 15]
    assert model.to_pixels(levels).flatten().tolist() == [8, 8, 24, 136, 248]  # 7.5 rounds to even


@pytest.mark.parametrize("levels", [2, 3, 16, 100, 256])
def test_every_level_survives_the_way_out_and_in_again(levels):
    space = spaces.Box(0, 255, (8, 8, 1), np.uint8)
    model = make(space, decoder={"levels": levels, "kind": "deconv"})
    every = torch.arange(levels, dtype=torch.uint8).view(-1, 1, 1, 1)
    assert torch.equal(model.to_levels(model.to_pixels(every)), every)


def test_discrete_actions_are_one_hot_and_continuous_ones_stay():
    assert make().action_vector(torch.tensor([2])).tolist() == [[0, 0, 1]]
    box = make(action_space=spaces.Box(-1, 1, (2,)))
    assert box.action_vector(torch.tensor([[0.5, -1.0]])).tolist() == [[0.5, -1.0]]


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (spaces.Box(0, 1, (8, 8, 1), np.float32), ACTIONS, "uint8 image"),
        (spaces.Box(0, 255, (8,), np.uint8), ACTIONS, "uint8 image"),
        (IMAGE, spaces.MultiDiscrete([2, 2]), "Discrete or one-dimensional Box"),
        (IMAGE, spaces.Box(-1, 1, (2, 2)), "Discrete or one-dimensional Box"),
    ],
)
def test_spaces_it_cannot_model_are_refused(observation, action, message):
    with pytest.raises(ConfigError, match=message):
        make(observation, action, layout="flat")


def test_images_of_few_values_have_a_level_for_each():
    assert make(spaces.Box(0, 10, (8, 8, 1), np.uint8)).levels == 11
    assert make(spaces.Box(0, 255, (8, 8, 1), np.uint8)).levels == 16


def test_more_levels_than_pixel_values_are_refused():
    with pytest.raises(ConfigError, match="at most 2"):
        make(decoder={"levels": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"posterior": "recurrent", "encoder": {"kind": "world_models"}}, "needs encoder.kind"),
        ({"posterior": "recurrent", "joint": False}, "joint: false needs posterior: frame"),
        ({"heads": {"reward_bins": 40}}, "odd"),
        ({"encoder": {"subtract_mean": False, "subtract_past": True}}, "subtract_past: true needs"),
    ],
)
def test_contradicting_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        model_settings(**changes)


# -- following, dreaming, drawing -----------------------------------------------------------------


@pytest.mark.parametrize("encoder", [{}, {"subtract_past": True}])
@pytest.mark.parametrize("posterior", ["frame", "recurrent"])
def test_observing_step_by_step_or_in_parts_gives_the_states_that_training_saw(posterior, encoder):
    """With codes that are not random: the most likely class has nearly all the weight."""
    model = make(bf16=False, posterior=posterior, code={"unimix": 0.0}, encoder=encoder).eval()
    with torch.no_grad():
        model.encoder.out.weight *= 1e4
    batch = random_batch(batch=3, length=7)
    trained = model.loss(batch, generator())[2]
    inputs = model.inputs(batch)
    in_parts = []
    for cuts in ((3, 4), (1,) * 7):
        latent, parts = model.initial(3, torch.device("cpu")), []
        for part in zip(*(each.split(cuts, 1) for each in inputs), strict=True):
            parts.append(model.observe(latent, *part).latent)
            latent = parts[-1].last
        in_parts.append(parts)
    latent, single = model.initial(3, torch.device("cpu")), []
    for t in range(7):
        latent = model.observe(latent, *(each[:, t] for each in inputs)).latent
        single.append(Latent(latent.hidden.unsqueeze(1), latent.code.unsqueeze(1)))
    for parts in (*in_parts, single):
        for name in ("hidden", "code"):
            got = torch.cat([getattr(part, name) for part in parts], 1)
            torch.testing.assert_close(got, getattr(trained, name), atol=1e-5, rtol=0)


def test_observing_sequences_gives_the_posterior_of_every_frame():
    model, batch = make(bf16=False).eval(), random_batch()
    seen = model.observe(model.initial(3, torch.device("cpu")), *model.inputs(batch), generator(3))
    frames = torch.as_tensor(batch.obs).movedim(-1, 2) / model.high
    posterior = model.code.normalise(model.encoder(Seen(frames)))
    torch.testing.assert_close(seen.posterior, posterior)
    _, _, trained = model.loss(batch, generator(3))
    torch.testing.assert_close(seen.latent.hidden, trained.hidden)
    torch.testing.assert_close(seen.latent.code, trained.code)


@pytest.mark.parametrize("bf16", [False, True])
def test_imagined_step_has_float32_tensors_without_gradient(bf16, bfloat16_everywhere):
    model = make(bf16=bf16)
    step = model.imagine_step(model.initial(4, torch.device("cpu")), torch.tensor([0, 1, 2, 0]))
    assert step.latent.features.shape == (4, model.feature_size)
    for tensor in (step.latent.hidden, step.latent.code, step.reward, step.continue_prob):
        assert tensor.dtype == torch.float32 and not tensor.requires_grad and len(tensor) == 4


def test_imagined_step_depends_on_the_action_and_on_its_generator_unless_it_takes_the_mode():
    model, start = make(bf16=False), torch.device("cpu")
    once, again, other, calm, calm_too = (
        model.imagine_step(model.initial(2, start), torch.tensor([1, 2]), generator(i), mode=mode)
        for i, mode in ((7, False), (7, False), (8, False), (0, True), (1, True))
    )
    assert torch.equal(once.latent.features, again.latent.features)
    assert not torch.equal(once.latent.code, other.latent.code)
    assert not torch.equal(once.latent.hidden[0], once.latent.hidden[1])
    prior = model.code.normalise(model.dynamics.prior(calm.latent.hidden))
    assert torch.equal(calm.latent.code, model.code.mode(prior))
    assert torch.equal(calm.latent.code, calm_too.latent.code)


def test_decoded_images_have_the_format_of_the_environment():
    for space in (IMAGE, spaces.Box(0, 255, (12, 10, 3), np.uint8)):
        model = make(space)
        images = model.decode(model.initial(3, torch.device("cpu")), generator())
        assert images.shape == (3, *space.shape) and images.dtype == torch.uint8
        assert images.max() <= space.high.max()


def test_latent_flattens_batch_and_time_and_is_cut_from_the_graph():
    latent = Latent(torch.rand(2, 3, 4, requires_grad=True), torch.rand(2, 3, 5))
    flat = latent.flatten()
    assert flat.hidden.shape == (6, 4) and flat.code.shape == (6, 5)
    assert not flat.hidden.requires_grad
    assert torch.equal(flat.hidden[4], latent.hidden[1, 1])
    assert torch.equal(flat[2:3].features, torch.cat([flat.code[2:3], flat.hidden[2:3]], -1))


def test_pixels_rewards_and_ends_of_a_simple_world_are_learned():
    model = make(hidden=48, bf16=False).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(150):
        loss, metrics, _ = model.loss(random_batch(16, 8, seed=step), generator(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["nats_per_frame"] < 3.6  # a dot anywhere in 64 places costs 4.2 at least
    assert metrics["reward"] < 0.5 and metrics["continue"] < 0.3
