"""The flow as a decoder: noise, training in the world model, pictures, and settings refused."""

import math

import pytest
import torch
from flow_makers import FEATURES, image_of, shaken
from simple_world import generator, make, random_batch
from test_learn_model import ACTIONS, OBS, episode, equal, settings
from tiny import model_settings

from mbrl.errors import ConfigError
from mbrl.learn_model import WorldModelLearner
from mbrl.replay import ReplayStore
from mbrl.world_model.decoders.flow import FlowDecoder
from mbrl.world_model.decoders.flow.image_flow import Uniform, Variational
from mbrl.world_model.decoders.settings import FlowDecoderSettings, FlowSettings

FLOW = {"kind": "flow", "flow": {"scales": 2, "steps": 2, "width": 8}}


def decoder(shape=(2, 8, 8), levels=2, **flow):
    torch.manual_seed(0)
    values = {"scales": 2, "steps": 2, "width": 8, **flow}
    made = FlowDecoderSettings(hidden=8, map_channels=4, flow=FlowSettings(**values))
    return FlowDecoder(shape, levels, FEATURES, made)


# -- noise ----------------------------------------------------------------------------------------


def test_uniform_noise_costs_nothing_and_repeats_with_its_generator():
    image = torch.zeros(3, 1, 4, 4)
    noise, log_q = Uniform()(image, torch.float64, generator(1))
    assert noise.dtype == torch.float64 and 0 <= noise.min() < noise.max() < 1
    assert log_q.tolist() == [0, 0, 0]
    assert torch.equal(Uniform()(image, torch.float64, generator(1))[0], noise)


def test_learned_noise_starts_uniform_and_stays_in_its_bin():
    torch.manual_seed(0)
    noise = Variational((1, 4, 4), 16, FlowSettings(width=4))
    image = torch.randint(16, (4000, 1, 4, 4))
    drawn, log_q = noise(image, torch.float32, generator())
    torch.testing.assert_close(log_q, torch.zeros(4000), atol=1e-3, rtol=0)
    counts = torch.histc(drawn, 10, 0, 1) / drawn.numel()
    torch.testing.assert_close(counts, torch.full((10,), 0.1), atol=0.005, rtol=0)
    drawn, log_q = shaken(noise, 0.5)(image, torch.float32, generator())
    assert drawn.min() >= 0 and drawn.max() < 1 and log_q.std() > 0.1


def test_the_density_of_learned_noise_integrates_to_one():
    """E[1 / q(u)] over u from q is the volume of [0, 1)^D, which is 1."""
    torch.manual_seed(0)
    noise = shaken(Variational((1, 2, 2), 4, FlowSettings(width=4)).double(), 0.05)
    with torch.no_grad():
        _, log_q = noise(torch.zeros(100_000, 1, 2, 2), torch.float64, generator())
    assert log_q.std() > 0.05
    assert (-log_q).exp().mean().item() == pytest.approx(1, abs=0.02)


# -- the decoder ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dequantisation", ["uniform", "variational"])
def test_nats_are_those_of_the_frame_and_samples_are_levels(dequantisation):
    made = decoder(dequantisation=dequantisation)
    image, features = image_of(made), torch.randn(3, FEATURES)
    nats = made.nats(image, features, generator())
    assert nats.shape == (3, 1)
    torch.testing.assert_close(made.log_prob(image, features, generator()), -nats[:, 0])
    drawn = made.sample(features, generator())
    assert drawn.shape == image.shape and drawn.dtype == torch.uint8 and drawn.max() <= 1


def test_the_decoder_initialises_once_and_from_all_of_a_large_batch():
    made = decoder()
    assert made.needs_initialise
    image, features = image_of(made, 600), torch.randn(600, FEATURES)
    made.initialise(image, features, generator())
    assert not made.needs_initialise
    reloaded = decoder()
    reloaded.load_state_dict(made.state_dict())
    assert not reloaded.needs_initialise


# -- in the world model ---------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["plain", "checkpoint", "reversible"])
def test_a_world_model_trains_dreams_and_decodes_with_a_flow(memory, bfloat16_everywhere):
    decoder_settings = {**FLOW, "flow": {**FLOW["flow"], "memory": memory}}
    model = make(decoder=decoder_settings)  # bfloat16
    batch = random_batch()
    model.initialise(batch, generator())
    assert not model.decoder.needs_initialise
    loss, metrics, latent = model.loss(batch, generator())
    loss.backward()
    assert all(w.grad is not None for w in model.decoder.parameters())
    assert math.isfinite(loss.item()) and metrics["nats_per_frame"].dtype == torch.float32
    pictures = model.eval().decode(latent.flatten(), generator())
    assert pictures.shape == (18, 8, 8, 2) and pictures.dtype == torch.uint8 and pictures.max() <= 1
    obs = torch.as_tensor(batch.obs).flatten(0, 1)
    assert model.frame_nats(obs, latent.flatten()).shape == (18,)


def test_other_decoders_draw_nothing_to_initialise():
    model, stream = make(), generator()
    before = stream.get_state()
    model.initialise(random_batch(), stream)
    assert torch.equal(stream.get_state(), before)


@pytest.fixture
def store(tmp_path):
    store = ReplayStore(tmp_path, env_id="x")
    store.commit([episode("1"), episode("2")], "c0", 38)
    return store


def learner_of(store, lr=1e-3, **flow):
    model = model_settings(decoder={"kind": "flow", "flow": {**FLOW["flow"], **flow}})
    made = WorldModelLearner(
        OBS,
        ACTIONS,
        model,
        settings(lr=lr),
        store,
        capacity_steps=1000,
        ring_directory=None,
        root_seed=0,
    )
    made.refresh()
    return made


def test_a_flow_learns_binary_frames(store):
    learner = learner_of(store, lr=5e-3, memory="reversible", marginal=False)
    first, _ = learner.learn(2)
    learner.learn(40)
    last, _ = learner.learn(2)
    assert last["nats_per_frame"] < first["nats_per_frame"] - 10
    learner.close()


def test_a_restored_learner_goes_on_exactly_and_does_not_initialise_again(store):
    learner = learner_of(store)
    learner.learn(2)
    state = learner.state_dict()
    expected, _ = learner.learn(2)
    other = learner_of(store)
    other.load_state_dict(state)
    got, _ = other.learn(2)
    assert got == expected
    assert equal(learner.model_state(), other.model_state())
    learner.close()
    other.close()


@pytest.mark.parametrize(
    ("shape", "scales", "words"),
    [
        ((4, 10, 10), 2, "expected at most 1 for images of 10 x 10, .*got 2; lower it to 1"),
        ((1, 48, 64), 5, "expected at most 4 for images of 48 x 64"),
        ((1, 21, 64), 1, "expected at most 0 .*pixelcnn"),
    ],
)
def test_an_image_that_cannot_be_halved_so_often_is_refused(shape, scales, words):
    with pytest.raises(ConfigError, match=f"decoder.flow.scales: {words}"):
        decoder(shape, scales=scales)
