"""What the world model minimises: its terms, their weights, and where gradients go."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from simple_world import ACTIONS, WORLD_MODELS_2018, generator, make, random_batch

from mbrl.episode import SequenceBatch
from mbrl.errors import ConfigError
from mbrl.world_model.encoder import Seen
from mbrl.world_model.layouts import make_world_model
from mbrl.world_model.settings import WorldModelSettings


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"posterior": "recurrent"},
        {"decoder": {"kind": "deconv"}},
        {"code": {"kind": "gaussian"}},
        {"decoder": {"fraction": 0.5}, "bf16": False},
        WORLD_MODELS_2018,
    ],
    ids=["default", "recurrent", "deconv", "gaussian", "fraction fp32", "world models 2018"],
)
def test_every_variant_learns_and_gives_each_weight_a_gradient(changes):
    """A weight without gradient would stop DDP."""
    model, batch = make(**changes).train(), random_batch(batch=8, length=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        loss, _, _ = model.loss(batch, generator(step))
        optimizer.zero_grad()
        loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


def test_loss_of_continuous_actions_is_finite():
    model = make(action_space=spaces.Box(-1, 1, (2,)))
    batch = random_batch()
    actions = np.random.default_rng(0).uniform(-1, 1, (*batch.shape, 2)).astype(np.float32)
    fields = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    loss, _, _ = model.loss(SequenceBatch(**{**fields, "prev_action": actions}))
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("kl", "nats"),
    [
        ({"free_nats": 0.0}, lambda kl: 0.75 * kl),  # both terms have the same value
        ({"free_nats": 100.0}, lambda kl: 0.75 * 100.0),
        ({"soft_free_nats": 100.0}, lambda kl: (0.5 + 0.25 * 0.9) * kl),
    ],
    ids=["free", "floored", "soft"],
)
def test_loss_is_the_sum_of_its_weighted_parts(kl, nats):
    heads = {"reward_weight": 2.0, "continue_weight": 3.0}
    model = make(bf16=False, kl={"dynamics": 0.5, "representation": 0.25, **kl}, heads=heads)
    loss, metrics, _ = model.train().loss(random_batch(), generator())
    parts = metrics["nats_per_frame"] + nats(metrics["kl"])
    parts = parts + 2 * metrics["reward"] + 3 * metrics["continue"]
    torch.testing.assert_close(loss, parts, rtol=1e-5, atol=1e-5)


def test_vae_penalty_of_world_models_2018_is_towards_the_standard_normal():
    """With a posterior of mean 1 and standard deviation 1 it is exactly Z / 2 nats."""
    model = make(
        **WORLD_MODELS_2018,
        bf16=False,
        kl={"free_nats": 0.0, "dynamics": 0.0, "representation": 1.0},
        heads={"reward_weight": 0.0, "continue_weight": 0.0},
    )
    torch.nn.init.zeros_(model.encoder.out.weight)
    with torch.no_grad():  # log std is -1.5 + 3.5 tanh(raw)
        model.encoder.out.bias[:8] = 1.0
        model.encoder.out.bias[8:] = float(np.arctanh(1.5 / 3.5))
    loss, metrics, _ = model.eval().loss(random_batch(), generator())
    assert (loss - metrics["nats_per_frame"]).item() == pytest.approx(8 / 2, abs=1e-4)


def test_decoder_fraction_is_unbiased():
    """With codes that are not random, so that only the choice of rows is."""
    shared = {"bf16": False, "code": {"unimix": 0.0}}
    full, part = (make(**shared, decoder={"fraction": f}).eval() for f in (1.0, 0.25))
    batch = random_batch()  # 18 rows
    with torch.no_grad():
        full.decoder.head.weight.normal_(generator=generator(6))
        full.encoder.out.weight *= 1e4
        part.load_state_dict(full.state_dict())
        expected = full.loss(batch, generator())[1]["nats_per_frame"]
        drawn = [part.loss(batch, generator(seed))[1]["nats_per_frame"] for seed in range(300)]
    draws = torch.stack(drawn)
    standard_error = (draws.std() / 300**0.5).item()
    assert abs(draws.mean() - expected).item() < 4 * standard_error
    assert draws.std() > 0  # it is a random share indeed


def test_bf16_and_fp32_losses_are_close_and_not_the_same(bfloat16_everywhere):
    values = {}
    for bf16 in (False, True):
        model = make(bf16=bf16).eval()
        with torch.no_grad():
            model.heads.out.weight.normal_(generator=generator(1))
        _, metrics, _ = model.loss(random_batch(), generator())
        values[bf16] = torch.stack(list(metrics.values()))
    torch.testing.assert_close(values[True], values[False], rtol=0.03, atol=0.03)
    assert not torch.equal(values[True], values[False])


def without_pixels(model):
    """The same model, whose decoder finds every frame free."""
    model.decoder.nats = lambda image, *_: torch.zeros(len(image), 1)
    return model


def moved(module):
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    return any(g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize("joint", [False, True])
def test_encoder_of_world_models_2018_gets_no_gradient_from_the_dynamics(joint):
    # without pixels and without the VAE's own penalty, only the dynamics and the heads speak
    model = without_pixels(make(**{**WORLD_MODELS_2018, "joint": joint}, kl={"representation": 0}))
    torch.nn.init.normal_(model.heads.out.weight)
    model.loss(random_batch(), generator())[0].backward()
    assert moved(model.encoder) == joint


@pytest.mark.parametrize(
    ("weights", "prior_moves", "encoder_moves"),
    [
        ({"dynamics": 1.0, "representation": 0.0}, True, False),
        ({"dynamics": 0.0, "representation": 1.0}, False, True),
    ],
)
def test_prior_and_posterior_are_pulled_with_their_own_weights(weights, prior_moves, encoder_moves):
    model = without_pixels(make(kl={"free_nats": 0.0, **weights}, heads={"reward_weight": 0.0}))
    model.dynamics.gru.requires_grad_(False)  # through h the encoder is reached in any case
    model.dynamics.sequence = lambda codes, action, first, _: torch.zeros(*first.shape, 24)
    torch.nn.init.zeros_(model.heads.out.weight)
    model.loss(random_batch(), generator())[0].backward()
    assert moved(model.dynamics.prior_out) == prior_moves
    assert moved(model.encoder) == encoder_moves


def test_the_weight_that_the_code_is_pulled_with_is_a_metric_and_is_saved():
    model, batch = make(kl={"representation": 0.5, "soft_free_nats": 50.0}).train(), random_batch()
    weights = [model.loss(batch, generator())[1]["kl_weight"].item() for _ in range(3)]
    assert weights == pytest.approx([0.5 * 0.9, 0.5 * 0.81, 0.5 * 0.729])  # the KL is below 50
    restored = make(kl={"soft_free_nats": 50.0})
    restored.load_state_dict(model.state_dict())
    assert restored.kl_weight.item() == pytest.approx(0.729)  # a resumed run goes on with it
    assert make().loss(batch, generator())[1]["kl_weight"].item() == pytest.approx(0.1)


def kls(model, batch):
    """Of every row, to the dynamics' prior and to the static one of a plain VAE."""
    start = model.initial(len(batch.obs), torch.device("cpu"))
    seen = model.observe(start, *model.inputs(batch), generator())
    prior = model.code.normalise(model.dynamics.prior(seen.latent.hidden))
    static = torch.zeros_like(prior)
    return model.code.kl(seen.posterior, prior), model.code.kl(seen.posterior, static)


@torch.no_grad()
def test_soft_free_nats_steer_on_the_kl_that_their_weight_is_for():
    batch = random_batch()
    dynamics, static = kls(make(joint=False, bf16=False).eval(), batch)
    low, high = sorted([dynamics.mean().item(), static.mean().item()])
    assert high > 1.2 * low
    target = (low * high) ** 0.5  # between the two
    model = make(joint=False, bf16=False, kl={"soft_free_nats": target}).train()
    model.kl_weight.fill_(0.5)
    model.loss(batch, generator())
    rises = static.mean() > target
    assert model.kl_weight.item() == pytest.approx(0.55 if rises else 0.45)


@torch.no_grad()
def test_stage_by_stage_the_prior_learns_below_the_floor_and_each_frame_has_its_own():
    batch = random_batch()
    _, static = kls(make(joint=False, bf16=False).eval(), batch)
    floor = static.median().item()  # above the KL of some frames, below that of others
    kl = {"free_nats": floor, "dynamics": 1.0, "representation": 0.5}
    heads = {"reward_weight": 0.0, "continue_weight": 0.0}
    model = make(joint=False, bf16=False, kl=kl, heads=heads).eval()
    loss, metrics, _ = model.loss(batch, generator())
    expected = metrics["kl"] + 0.5 * static.clamp_min(floor).mean()
    torch.testing.assert_close(loss - metrics["nats_per_frame"], expected, atol=1e-4, rtol=1e-4)


def test_only_the_means_of_a_gaussian_code_are_standardised():
    code, frames = {"kind": "gaussian", "groups": 8}, torch.rand(64, 2, 8, 8)
    model = make(code=code, encoder={"deviation": 2.0}).train()
    plain = make(code=code).train()
    plain.encoder.load_state_dict(
        {k: v for k, v in model.encoder.state_dict().items() if "standardised" not in k}
    )
    mean, log_std = model.encoder(Seen(frames)).chunk(2, -1)
    assert mean.std(0, correction=0).mean().item() == pytest.approx(2.0, abs=0.01)
    torch.testing.assert_close(log_std, plain.encoder(Seen(frames)).chunk(2, -1)[1])


def test_world_models_2018_has_its_own_networks_and_refuses_other_sizes():
    settings = {
        "encoder": {"kind": "world_models"},
        "decoder": {"kind": "world_models", "levels": 256},
        "code": {"kind": "gaussian", "groups": 32},
    }
    space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    model = make_world_model(space, ACTIONS, WorldModelSettings(joint=False, **settings))
    encoder = sum(p.numel() for p in model.encoder.parameters())
    assert encoder == (48 * 32 + 32) + (512 * 64 + 64) + (1024 * 128 + 128) + (2048 * 256 + 256) + (
        1024 * 64 + 64
    )  # the paper's, with its 32 means and 32 log variances
    frames = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    latent = model.initial(2, frames.device)
    assert model.decode(latent).shape == frames.shape
    assert model.eval().frame_nats(frames, latent).shape == (2,)
    with pytest.raises(ConfigError, match="expected frames of 64 x 64, got 10 x 10"):
        make_world_model(spaces.Box(0, 255, (10, 10, 3), np.uint8), ACTIONS, model.settings)


def test_frame_nats_of_all_rows_average_to_what_training_reports():
    model, batch = make(bf16=False, decoder={"fraction": 1.0}).eval(), random_batch()
    _, metrics, latent = model.loss(batch, generator(3))
    nats = model.frame_nats(torch.as_tensor(batch.obs).flatten(0, 1), latent.flatten())
    assert nats.shape == (18,)
    torch.testing.assert_close(nats.mean(), metrics["nats_per_frame"])


def test_action_and_past_of_a_first_row_are_never_seen():
    model = make(bf16=False).eval()
    batch = random_batch(batch=1, length=6)
    fields = {name: getattr(batch, name).copy() for name in batch.__dataclass_fields__}
    fields["is_first"][:] = [[True, False, False, True, False, False]]
    one = model.loss(SequenceBatch(**fields), generator())[2]
    fields["prev_action"][0, 3] = 2
    fields["prev_action"][0, 0] = 1
    fields["obs"][0, :3] = 1
    two = model.loss(SequenceBatch(**fields), generator())[2]
    assert torch.equal(one.hidden[0, 3:], two.hidden[0, 3:])
    assert not torch.equal(one.hidden[0, 1:3], two.hidden[0, 1:3])


def test_an_old_checkpoint_may_hold_the_count_of_updates_that_is_gone_and_nothing_else():
    model = make()
    old = {**model.state_dict(), "trained": torch.tensor(7.0)}
    model.load_state_dict(old)
    assert "trained" in old  # what is loaded is not changed
    with pytest.raises(RuntimeError, match="kl_wait"):
        model.load_state_dict({**old, "kl_wait": torch.zeros(())})
