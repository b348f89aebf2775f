import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from simple_world import generator, make, random_batch

from mbrl.errors import ConfigError
from mbrl.world_model.grid import prior as grid_prior
from mbrl.world_model.grid.codebook import PatchCodebook
from mbrl.world_model.grid.dynamics import GridDynamics
from mbrl.world_model.grid.prior import CodeFrequency, IndependentPrior, JointPrior, draw
from mbrl.world_model.latent import Latent, Observed


def book_of(frames, **settings):
    """A book for these frames (N, C, H, W) of levels, which it has learnt."""
    given = {"levels": 2, "cell": 1, "codes": 8, "distance": 0.1, **settings}
    book = PatchCodebook(tuple(frames.shape[1:]), **given)
    book.learn(frames)
    return book


def grid(**settings):
    """A small grid model."""
    return make(layout="grid", grid={"hidden": 8, "embedding": 4, "prior_maps": 4, **settings})


# -- codebook -------------------------------------------------------------------------------------


def test_frames_of_known_patches_come_back_as_they_were():
    frames = torch.randint(2, (20, 2, 6, 4), dtype=torch.uint8)  # 120 patches
    book = book_of(frames, cell=2, codes=300)
    assert torch.equal(book.levels_of(book.nearest(frames)), frames)
    assert book.known <= 300 and book.misses == 0


def test_what_nothing_is_known_of_is_the_empty_patch():
    book = book_of(torch.ones(1, 1, 2, 2, dtype=torch.uint8))
    assert book.known == 2  # nothing, and one
    assert book.levels_of(torch.full((1, 2, 2), -1)).sum() == 0


def test_a_patch_becomes_a_code_when_it_differs_enough():
    frames = torch.tensor([[10], [11], [14]], dtype=torch.uint8).view(3, 1, 1, 1)
    # intensities differ by 1/15 and 4/15; squared, 0.0044 and 0.071
    book = book_of(frames, levels=16, distance=0.05)
    assert book.patches[: book.known].flatten().tolist() == [0, 10, 14]
    assert book.levels_of(book.nearest(frames)).flatten().tolist() == [10, 10, 14]


def test_a_full_book_takes_the_most_frequent_patches_and_the_nearest_for_others():
    levels = torch.tensor([3, 9, 9, 9, 15, 15], dtype=torch.uint8).view(6, 1, 1, 1)
    book = book_of(levels, levels=16, codes=3, distance=0.01)
    assert book.patches.flatten().tolist() == [0, 9, 15]
    assert book.levels_of(book.nearest(levels)).flatten().tolist() == [0, 9, 9, 9, 15, 15]


def test_equal_patches_are_one_code_even_without_a_distance():
    frames = torch.randint(2, (40, 1, 4, 4), dtype=torch.uint8)
    book = book_of(frames, cell=2, codes=64, distance=0.0)
    for _ in range(3):
        book.learn(frames)
    assert book.known == 16  # 2 x 2 pixels of two levels


def test_codes_stay_when_the_book_grows_and_when_it_is_loaded():
    frames = torch.tensor([6, 14], dtype=torch.uint8).view(2, 1, 1, 1)
    book = book_of(frames[:1], levels=16)
    before = book.nearest(frames[:1])
    book.learn(frames)
    assert torch.equal(book.nearest(frames[:1]), before)
    other = PatchCodebook((1, 1, 1), 16, 1, 8, 0.1)
    other.load_state_dict(book.state_dict())
    assert other.known == book.known == 3
    assert torch.equal(other.nearest(frames), book.nearest(frames))


# -- prior ----------------------------------------------------------------------------------------


def joint_prior(layers=1):
    """A prior over 2 x 2 cells of 2 codes with weights that matter, and an embedding."""
    torch.manual_seed(1)
    book = book_of(torch.tensor([0, 1], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 2, 2))
    often = CodeFrequency(book)
    prior = JointPrior(book, often, hidden=3, embedding=2, maps=4, layers=layers).eval()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    embedding = 5 * torch.randn(2, 2)
    return prior, lambda code: embedding[code]


EVERY_FRAME = torch.tensor(list(itertools.product([0, 1], repeat=4))).view(16, 2, 2)


@torch.no_grad()
def test_the_joint_prior_is_a_distribution_over_frames():
    prior, embed = joint_prior()
    context = torch.zeros(16, 2, 2, 3)
    nats, _ = prior.nats(context, EVERY_FRAME, embed(EVERY_FRAME))
    assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_samples_of_the_joint_prior_have_its_probabilities():
    prior, embed = joint_prior()
    context = torch.randn(1, 2, 2, 3)
    nats, _ = prior.nats(context.expand(16, -1, -1, -1), EVERY_FRAME, embed(EVERY_FRAME))
    uniform = torch.rand(20_000, 2, 2, generator=generator())
    drawn = prior.sample(context.expand(20_000, -1, -1, -1), embed, uniform)
    number = (drawn.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1)
    shares = torch.bincount(number, minlength=16) / len(drawn)
    assert (shares - (-nats).exp()).abs().max() < 0.015  # four deviations of a share near 1 / 2


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2])
def test_the_fixed_point_is_what_drawing_cell_after_cell_gives(layers):
    prior, embed = joint_prior(layers)
    context, uniform = torch.randn(64, 2, 2, 3), torch.rand(64, 2, 2)
    one_by_one = torch.zeros(64, 2, 2, dtype=torch.int64)
    for row, column in np.ndindex(2, 2):
        features = prior.features(prior.conditions(context), embed(one_by_one))
        drawn = prior.head.sample(features, uniform)
        one_by_one[:, row, column] = drawn[:, row, column]
    assert torch.equal(prior.sample(context, embed, uniform), one_by_one)


def test_a_cell_is_drawn_from_those_before_it_only():
    prior, embed = joint_prior(layers=2)
    context, code = torch.randn(1, 2, 2, 3), torch.zeros(1, 2, 2, dtype=torch.int64)
    before = prior.features(prior.conditions(context), embed(code))
    code[0, 1, 0] = 1  # the third of four
    after = prior.features(prior.conditions(context), embed(code))
    same = (before == after).all(-1)[0]
    assert same.tolist() == [[True, True], [True, False]]  # it is not independent, either


@torch.no_grad()
def test_the_independent_prior_draws_each_cell_by_its_own_logits():
    book = book_of(torch.tensor([0, 1], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 2, 2))
    prior = IndependentPrior(book, CodeFrequency(book), hidden=3, maps=4)
    context, uniform = torch.randn(5, 2, 2, 3), torch.rand(5, 2, 2)
    ones = uniform >= prior.head(prior.features(context)).softmax(-1)[..., 0]
    assert torch.equal(prior.sample(context, torch.nn.Identity(), uniform), ones.long())


@pytest.mark.parametrize("few", [64, 2])
def test_a_draw_follows_the_cumulative_probabilities(few, monkeypatch):
    monkeypatch.setattr(grid_prior, "FEW", few)  # both ways of adding them up
    logits = torch.tensor([0.2, 0.5, 0.3]).log().view(3, 1, 1, 1).expand(3, 5, 1, 1)
    uniform = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.999]).view(5, 1, 1)
    assert draw(logits, uniform).flatten().tolist() == [0, 0, 1, 1, 2]
    assert draw(logits, None).flatten().tolist() == [1] * 5


# -- dynamics and model ---------------------------------------------------------------------------


def test_only_the_state_reaches_far_through_the_pooled_context():
    dynamics = GridDynamics((9, 9), embedding=2, action_size=1, hidden=4)
    hidden = torch.zeros(1, 9, 9, 4)
    moved = hidden.clone()
    moved[0, 0, 0] = 1
    inputs = torch.randn(1, 9, 9, 12)
    far = (dynamics.step(moved, inputs) - dynamics.step(hidden, inputs))[0, 8, 8]
    assert far.abs().max() > 0
    torch.nn.init.zeros_(dynamics.gates_global.weight)
    near = (dynamics.step(moved, inputs) - dynamics.step(hidden, inputs))[0]
    assert near[2:].abs().max() == 0 and near[:2, :2].abs().max() > 0


@torch.no_grad()
def test_observing_step_by_step_gives_the_states_that_training_saw():
    model, batch = grid(), random_batch()
    _, _, trained = model.train().loss(batch)
    model.eval()
    prev_action, obs, is_first = model.inputs(batch)
    latent, steps = model.initial(3, model.device), []
    for t in range(6):
        seen = model.observe(latent, prev_action[:, t], obs[:, t], is_first[:, t])
        latent = seen.latent
        steps.append(seen)
    whole = model.observe(model.initial(3, model.device), prev_action, obs, is_first)
    for t, step in enumerate(steps):
        torch.testing.assert_close(step.latent.hidden, trained.hidden[:, t])
        assert torch.equal(step.latent.code, trained.code[:, t])
        assert torch.equal(step.posterior, whole.posterior[:, t])
    torch.testing.assert_close(whole.latent.hidden, trained.hidden)


def test_the_first_rows_of_sequences_and_episodes_are_not_foreseen():
    model, batch = grid(), random_batch()
    model.train().loss(batch)  # the book knows every patch
    model.eval()
    loss = model.loss(batch)[0].item()
    batch.reward[:, 0] = 5.0
    batch.reward[batch.is_first] = 5.0
    assert model.loss(batch)[0].item() == loss
    model.heads.out.bias.data[:] = torch.linspace(-1, 1, len(model.heads.out.bias))
    loss = model.loss(batch)[0].item()
    batch.reward[0, 3] = 5.0
    assert not batch.is_first[0, 3] and model.loss(batch)[0].item() != loss


def test_the_kl_of_the_loss_is_the_rate_of_the_rows_that_are_foreseen():
    model, batch = grid(), random_batch()
    model.train().loss(batch)
    model.eval()
    metrics = model.loss(batch)[1]
    seen = model.observe(model.initial(3, model.device), *model.inputs(batch))
    observed = Observed(seen.latent.flatten(), seen.posterior.flatten(0, 1))
    rate, static = model.rates(observed)
    foreseen = torch.as_tensor(~batch.is_first)
    foreseen[:, 0] = False
    mean = rate.view(3, 6)[foreseen].mean()
    assert float(metrics["kl"]) == pytest.approx(float(mean), rel=1e-3)
    cells, known = 64, model.book.known
    torch.testing.assert_close(static, torch.full((18,), cells * float(np.log(known))))


def test_rewards_and_endings_follow_from_codes_before_and_after_alone(monkeypatch):
    model = grid()
    model.train()
    model.loss(random_batch())
    torch.nn.init.normal_(model.heads.out.weight)
    model.eval()
    after = torch.randint(model.book.known, (3, *model.grid))
    monkeypatch.setattr(model.prior, "sample", lambda *_: after)
    before = torch.randint(model.book.known, (3, *model.grid))
    hidden = torch.randn(2, 3, *model.grid, model.settings.grid.hidden)
    action = torch.zeros(3, dtype=torch.int64)
    one, other = (model.imagine_step(Latent(h, before), action) for h in hidden)
    assert torch.equal(one.reward, other.reward)
    assert torch.equal(one.continue_prob, other.continue_prob)
    elsewhere = model.imagine_step(Latent(hidden[0], before.flip(0)), action)
    assert not torch.allclose(one.continue_prob, elsewhere.continue_prob)


def test_an_event_looks_the_same_at_every_place_inside_a_frame():
    events = grid().events
    cell = torch.zeros(2, 7, 7, events.look.in_channels // 2)
    cell[0, 2, 2] = cell[1, 4, 3] = torch.rand(cell.shape[-1])
    seen = events(torch.zeros_like(cell), cell)
    assert torch.allclose(seen[0], seen[1], atol=1e-6)
    assert not torch.allclose(seen[0], events(cell, torch.zeros_like(cell))[0])


def test_features_are_the_patches_and_the_state_of_each_cell():
    model, batch = grid(), random_batch()
    model.train().loss(batch)
    seen = model.eval().observe(model.initial(3, model.device), *model.inputs(batch)).latent
    maps = model.features(seen).unflatten(-1, model.feature_map)
    assert model.feature_map == (8, 8, 2 + 8)
    assert torch.equal(maps[..., :2], torch.as_tensor(batch.obs).float())
    assert torch.equal(maps[..., 2:], seen.hidden)
    alone = grid(shows="code")
    alone.load_state_dict(model.state_dict())
    assert alone.feature_map == (8, 8, 2)
    assert torch.equal(alone.features(seen), maps[..., :2].flatten(-3))
    nothing = model.features(model.initial(2, model.device))
    assert nothing.shape == (2, model.feature_size) and nothing.abs().max() == 0


def test_a_dream_decodes_to_frames_of_known_patches():
    model, batch = grid(), random_batch()
    model.train().loss(batch)
    model.eval()
    latent = model.observe(model.initial(3, model.device), *model.inputs(batch)).latent.flatten()
    action = torch.zeros(18, dtype=torch.int64)
    step = model.imagine_step(latent, action, generator())
    assert step.latent.hidden.shape == latent.hidden.shape and not step.reward.requires_grad
    assert (step.continue_prob > 0).all() and step.continue_prob.shape == (18,)
    assert torch.equal(model.decode(latent), torch.as_tensor(batch.obs).flatten(0, 1))
    assert model.decode(step.latent).shape == (18, 8, 8, 2)
    same = model.imagine_step(latent, action, mode=True).latent
    assert torch.equal(same.code, model.imagine_step(latent, action, mode=True).latent.code)


def test_a_frame_costs_what_its_codes_get_wrong():
    model, batch = grid(), random_batch()
    model.train().loss(batch)
    model.eval().book.misses.fill_(0.25)
    obs = torch.as_tensor(batch.obs[:1, 0])
    latent = Latent(torch.zeros(1, 8, 8, 8), model.book.nearest(model.to_levels(obs)))
    wrong = obs.clone()
    wrong[0, 0, 0, 0] ^= 1
    expected = [-128 * np.log(0.75), -127 * np.log(0.75) - np.log(0.25)]
    got = [float(model.frame_nats(one, latent)) for one in (obs, wrong)]
    assert got == pytest.approx(expected, rel=1e-5)


def test_cells_must_divide_the_frame():
    with pytest.raises(ConfigError, match="divisor"):
        grid(cell=3)


@pytest.mark.parametrize("prior", ["joint", "independent"])
def test_a_simple_world_is_learnt(prior):
    model = grid(prior=prior).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for seed in range(120):
        loss, metrics, _ = model.loss(random_batch(16, 8, seed=seed))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(metrics["kl"]) < 1.0  # of 4.2 for a dot that may be anywhere
    assert float(metrics["reward"]) < 0.2


def test_intensities_of_any_space_are_modelled():
    model = make(spaces.Box(0, 255, (16, 8, 3), np.uint8), layout="grid", grid={"cell": 8})
    batch = random_batch(2, 3, spaces.Box(0, 255, (16, 8, 3), np.uint8))
    model.train().loss(batch)
    assert model.grid == (2, 1) and model.book.size == 192
