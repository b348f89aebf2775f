"""What the world model minimises: its terms, their weights, and where gradients go."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from simple_world import ACTIONS, WORLD_MODELS_2018, generator, make, random_batch

from mbrl.episode import SequenceBatch
from mbrl.errors import ConfigError
from mbrl.world_model.model import WorldModel
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


def test_loss_is_the_sum_of_its_weighted_parts():
    changes = {
        "bf16": False,
        "kl": {"free_nats": 0.0, "dynamics": 0.5, "representation": 0.25},
        "heads": {"reward_weight": 2.0, "continue_weight": 3.0},
    }
    model = make(**changes).eval()
    loss, metrics, _ = model.loss(random_batch(), generator())
    parts = metrics["nats_per_frame"] + 0.75 * metrics["kl"]  # both terms have the same value
    parts = parts + 2 * metrics["reward"] + 3 * metrics["continue"]
    torch.testing.assert_close(loss, parts, rtol=1e-5, atol=1e-5)


def test_vae_penalty_of_world_models_2018_is_towards_the_standard_normal():
    """With a posterior of mean 1 and standard deviation 1 it is exactly Z / 2 nats."""
    model = make(**WORLD_MODELS_2018, kl={"free_nats": 0.0, "dynamics": 0.0, "representation": 1.0})
    weights = {"reward_weight": 0.0, "continue_weight": 0.0}
    model.settings = model.settings.model_copy(
        update={"heads": model.settings.heads.model_copy(update=weights), "bf16": False}
    )
    torch.nn.init.zeros_(model.encoder.out.weight)
    with torch.no_grad():  # log std is -1.5 + 3.5 tanh(raw)
        model.encoder.out.bias[:8] = 1.0
        model.encoder.out.bias[8:] = float(np.arctanh(1.5 / 3.5))
    loss, metrics, _ = model.eval().loss(random_batch(), generator())
    assert (loss - metrics["nats_per_frame"]).item() == pytest.approx(8 / 2, abs=1e-4)


def test_decoder_fraction_is_unbiased():
    batch = random_batch()  # 18 rows
    full = make(bf16=False, decoder={"fraction": 1.0}).eval()
    part = make(bf16=False, decoder={"fraction": 0.25}).eval()
    with torch.no_grad():
        full.decoder.head.weight.normal_(generator=generator(6))
        part.load_state_dict(full.state_dict())
        features = torch.randn(18, full.feature_size, generator=generator(5))
        obs = torch.as_tensor(batch.obs).flatten(0, 1)
        expected, _ = full._reconstruction(obs, features, None)
        draws = [part._reconstruction(obs, features, generator(seed))[0] for seed in range(300)]
    draws = torch.stack(draws)
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


def test_encoder_of_world_models_2018_gets_no_gradient_from_the_dynamics():
    for joint, expected in ((False, False), (True, True)):
        model = make(**{**WORLD_MODELS_2018, "joint": joint})
        torch.nn.init.normal_(model.heads.out.weight)
        # without pixels and without the VAE's own penalty, only the dynamics and the heads speak
        model.settings = model.settings.model_copy(
            update={"kl": model.settings.kl.model_copy(update={"representation": 0.0})}
        )
        model._reconstruction = lambda *_: torch.zeros(2)  # type: ignore[method-assign]
        model.loss(random_batch(), generator())[0].backward()
        grads = [p.grad for p in model.encoder.parameters()]
        assert any(g is not None and g.abs().sum() > 0 for g in grads) == expected


def test_prior_and_posterior_are_pulled_with_their_own_weights():
    for weights, prior_moves, encoder_moves in (
        ({"dynamics": 1.0, "representation": 0.0}, True, False),
        ({"dynamics": 0.0, "representation": 1.0}, False, True),
    ):
        model = make(kl={"free_nats": 0.0, **weights}, heads={"reward_weight": 0.0})
        model._reconstruction = lambda *_: torch.zeros(2)  # type: ignore[method-assign]
        model.dynamics.gru.requires_grad_(False)  # through h the encoder is reached in any case
        model.dynamics.sequence = lambda codes, action, first: torch.zeros(*first.shape, 24)  # type: ignore[method-assign]
        torch.nn.init.zeros_(model.heads.out.weight)
        model.loss(random_batch(), generator())[0].backward()

        def moved(module):
            grads = [p.grad for p in module.parameters() if p.grad is not None]
            return any(g.abs().sum() > 0 for g in grads)

        assert moved(model.dynamics.prior_out) == prior_moves
        assert moved(model.encoder) == encoder_moves


def test_kl_warmup_lets_the_representation_term_grow_to_its_weight():
    model = make(kl={"free_nats": 0.0, "dynamics": 0.0, "representation": 0.5, "warmup_updates": 4})
    losses = [
        model.train()._kl_loss(torch.ones(3), torch.full((3,), 2.0))[0].item() for _ in range(6)
    ]
    assert losses == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    assert model.eval()._kl_loss(torch.ones(3), torch.ones(3))[0].item() == pytest.approx(0.5)
    assert model.trained == 6  # evaluation does not count


def test_the_weight_that_the_code_is_pulled_with_is_a_metric():
    kl = {"representation": 0.5, "warmup_updates": 4, "soft_free_nats": 50.0}
    model, batch = make(kl=kl).train(), random_batch()
    weights = [model.loss(batch, generator())[1]["kl_weight"].item() for _ in range(3)]
    # a half, a quarter more of it with every update, a tenth less as the KL is below its target
    assert weights == pytest.approx([0.5 * 0.25 * 0.9, 0.5 * 0.5 * 0.81, 0.5 * 0.75 * 0.729])
    assert make().loss(batch, generator())[1]["kl_weight"].item() == pytest.approx(0.1)


def test_soft_free_nats_train_the_prior_below_the_target_and_let_the_code_be():
    model = make(kl={"soft_free_nats": 4.0, "dynamics": 1.0, "representation": 0.5})
    first, _ = model.train()._kl_loss(torch.full((2,), 2.0), torch.full((2,), 2.0))
    assert first.item() == pytest.approx(2.0 + 0.5 * 0.9 * 2.0)
    assert model.kl_weight.item() == pytest.approx(0.9)
    for _ in range(100):
        model._kl_loss(torch.full((2,), 2.0), torch.full((2,), 2.0))
    assert model.kl_weight.item() == pytest.approx(1e-4)
    restored = make(kl={"soft_free_nats": 4.0})
    restored.load_state_dict(model.state_dict())
    assert restored.kl_weight.item() == pytest.approx(1e-4)  # a resumed run goes on with it


def test_soft_free_nats_steer_on_the_kl_that_their_weight_is_for():
    model = make(kl={"soft_free_nats": 4.0, "dynamics": 1.0, "representation": 0.5}).train()
    model._kl_loss(torch.full((2,), 9.0), torch.full((2,), 2.0))  # the prior's is far above
    assert model.kl_weight.item() == pytest.approx(0.9)


def test_stage_by_stage_the_prior_learns_below_the_floor_and_each_frame_has_its_own():
    model = make(joint=False, kl={"free_nats": 4.0, "dynamics": 1.0, "representation": 0.5}).train()
    dynamics = torch.tensor([1.0, 2.0], requires_grad=True)
    representation = torch.tensor([1.0, 9.0], requires_grad=True)
    loss, _ = model._kl_loss(dynamics, representation)
    loss.backward()
    assert loss.item() == pytest.approx(1.5 + 0.5 * (4 + 9) / 2)
    assert dynamics.grad.tolist() == [0.5, 0.5] and representation.grad.tolist() == [0.0, 0.25]


def test_only_the_means_of_a_gaussian_code_are_standardised():
    code, frames = {"kind": "gaussian", "groups": 8}, torch.rand(64, 2, 8, 8)
    model = make(code=code, encoder={"deviation": 2.0}).train()
    plain = make(code=code).train()
    plain.encoder.load_state_dict(
        {k: v for k, v in model.encoder.state_dict().items() if "standardised" not in k}
    )
    mean, log_std = model.encoder(frames).chunk(2, -1)
    assert mean.std(0, correction=0).mean().item() == pytest.approx(2.0, abs=0.01)
    torch.testing.assert_close(log_std, plain.encoder(frames).chunk(2, -1)[1])


def test_world_models_2018_has_its_own_networks_and_refuses_other_sizes():
    settings = {
        "encoder": {"kind": "world_models"},
        "decoder": {"kind": "world_models", "likelihood": "mse", "levels": 256},
        "code": {"kind": "gaussian", "groups": 32},
    }
    space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    model = WorldModel(space, ACTIONS, WorldModelSettings(joint=False, **settings))
    encoder = sum(p.numel() for p in model.encoder.parameters())
    assert encoder == (48 * 32 + 32) + (512 * 64 + 64) + (1024 * 128 + 128) + (2048 * 256 + 256) + (
        1024 * 64 + 64
    )  # the paper's, with its 32 means and 32 log variances
    frames = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    latent = model.initial(2, frames.device)
    assert model.decode(latent).shape == frames.shape
    assert model.eval().frame_nats(frames, latent).shape == (2,)
    with pytest.raises(ConfigError, match="expected frames of 64 x 64, got 10 x 10"):
        WorldModel(spaces.Box(0, 255, (10, 10, 3), np.uint8), ACTIONS, model.settings)


def test_filter_gives_the_codes_of_every_frame_and_the_latents_that_the_loss_trains_on():
    model, batch = make(bf16=False).eval(), random_batch()
    seen = model.filter(batch, generator(3))
    latent = seen.latent
    frames = torch.as_tensor(batch.obs).flatten(0, 1).movedim(-1, 1) / model.high
    posterior = model.code.normalise(model.encoder(frames)).unflatten(0, batch.shape)
    torch.testing.assert_close(seen.posterior, posterior)
    _, _, trained = model.loss(batch, generator(3))
    torch.testing.assert_close(latent.hidden, trained.hidden)
    torch.testing.assert_close(latent.code, trained.code)


def test_frame_nats_of_all_rows_average_to_what_training_reports():
    model, batch = make(bf16=False, decoder={"fraction": 1.0}).eval(), random_batch()
    _, metrics, latent = model.loss(batch, generator(3))
    nats = model.frame_nats(torch.as_tensor(batch.obs).flatten(0, 1), latent.flatten())
    assert nats.shape == (18,)
    torch.testing.assert_close(nats.mean(), metrics["nats_per_frame"])


def test_mean_frame_is_learned_in_training_only():
    model, batch = make(), random_batch()
    model.eval().loss(batch)
    assert model.encoder.mean_frame.batches == 0
    model.train().loss(batch)
    expected = torch.as_tensor(batch.obs).float().flatten(0, 1).mean(0).movedim(-1, 0)
    torch.testing.assert_close(model.encoder.mean_frame.mean, expected)


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
