"""Every object of every game is where the memory says it is, in real frames."""

import numpy as np
import pytest

from envs import VectorEnv
from envs.pong import STATE, court
from mbrl.studies.fidelity.frames import MixedPolicy
from mbrl.studies.fidelity.games import GAMES, Axis, SceneObject, region_of, sprite
from mbrl.studies.fidelity.objects import contrast, distance, fit_detector
from mbrl.studies.fidelity.readout import NUISANCES


def play(name, steps, every=1, **changes):
    """Frames (N, H, W, C), memories (N, R) and rewards of four mixed players."""
    game = GAMES[name]
    vector = VectorEnv(game.env.model_copy(update=changes), 4)
    for i in range(4):
        vector.reset(i, seed=i)
    policy = MixedPolicy(vector, game.act, seed=0)
    frames, memories, rewards = [], [], []
    for step in range(steps):
        result = vector.step(policy.act(vector.obs, np.zeros(4, bool)))
        rewards.append(result.rewards)
        if step % every == 0:
            frames.append(vector.obs)
            memories.append(vector.ram)
        for i in np.flatnonzero(result.terminateds | result.truncateds):
            vector.reset(int(i), seed=100 + step)
    vector.close()
    return np.concatenate(frames), np.concatenate(memories), np.concatenate(rewards)


def errors(frames, ram, target: SceneObject):
    """Distances of the located centre from the drawn one, and how often it is found at all."""
    contrasts = contrast(frames, np.median(frames, axis=0))
    places, claimed = target.locate(ram)
    found = fit_detector(target, contrasts, ram).near(contrasts[claimed], places[claimed])
    return distance(places[claimed], found.position)[found.present], found.present.mean()


@pytest.mark.timeout(600)  # for machines that do other things too
@pytest.mark.parametrize("screens", [1, 4])  # of four, what moves fast is drawn twice
@pytest.mark.parametrize(
    "name", ["pong", "breakout", pytest.param("boxing", marks=pytest.mark.slow)]
)
def test_objects_are_where_the_memory_says(name, screens):
    frames, ram, rewards = play(name, 1200 // screens, every=4 // screens, frame_skip=screens)
    assert (rewards != 0).sum() > 5  # rallies happen
    for target in GAMES[name].objects:
        away, found = errors(frames, ram, target)
        steady = screens == 1 or target.name in ("ball", "other_paddle")
        # boxers stretch their arms: their centre moves
        within = 1.0 if steady and name != "boxing" else 2.0
        assert (away <= within).mean() >= 0.95 and found >= 0.93, target.name


OURS = {
    "synthetic_pong": (),
    "synthetic_pong_texture": ("texture",),
    "synthetic_pong_nuisance": ("texture", "noise"),
}


@pytest.mark.parametrize("name", OURS)
def test_objects_of_our_own_pong_are_where_its_state_says(name):
    assert tuple(GAMES[name].env.kwargs) == OURS[name]
    assert {f"{dial}_id" for dial in OURS[name]} == GAMES[name].variables.keys() & {*NUISANCES}
    frames, ram, rewards = play(name, 300)
    for target in GAMES[name].objects:
        away, found = errors(frames, ram, target)
        assert (away <= 1).mean() >= 0.99 and found >= 0.99, target.name
        assert ((away == 0).mean() > 0.9) == (name == "synthetic_pong")
    assert (rewards > 0).any() and (rewards < 0).any()


def scripted(name, envs, steps):
    """Rewards (steps, envs) of a game's script alone, and its actions (steps, envs, ...)."""
    game = GAMES[name]
    vector = VectorEnv(game.env, envs)
    for i in range(envs):
        vector.reset(i, seed=i)
    rng = np.random.default_rng(0)
    actions, rewards = [], []
    for _ in range(steps):
        actions.append(game.act(vector.obs, vector.ram, rng))
        rewards.append(vector.step(actions[-1]).rewards)
    vector.close()
    return np.stack(rewards), np.stack(actions)


def test_scripts_return_most_balls_and_drive_forward():
    rewards, _ = scripted("pong", 2, 600)
    assert (rewards < 0).sum() <= 14  # idle, it loses a point every 40 steps: 30
    pytest.importorskip("Box2D")
    rewards, actions = scripted("car_racing", 1, 150)
    assert (np.abs(actions) <= 1).all() and actions.dtype == np.float32
    assert rewards.sum() > 20  # standing still costs 0.1 a step


# Geometry, by hand


def memory(**values):
    """One memory, 0 but for the bytes named `b<index>`."""
    ram = np.zeros((1, 128), np.uint8)
    for name, value in values.items():
        ram[0, int(name[1:])] = value
    return ram


STILL = Axis(80.0, 4)


def located(*memories, row=STILL, column=STILL, field=(0, -200, 210, 160)):
    return sprite("it", row, column, field).locate(np.concatenate(memories))


def test_a_sprite_is_scaled_to_the_frame():
    row, column = Axis(-12.0, 4, 54), Axis(10.0, 2, 49)
    (centre,), (visible,) = located(memory(b54=117, b49=0), row=row, column=column)
    assert visible
    # screen row 105 is the middle of the screen: the edge between pixels 31 and 32
    assert centre == pytest.approx([31.5, 10 * 0.4 - 0.5])


def test_a_sprite_half_outside_is_centred_on_what_is_left():
    memories = (memory(b1=102), memory(b1=98), memory(b1=90))
    centres, visible = located(*memories, row=Axis(0.0, 10, 1), field=(100, 0, 210, 160))
    assert visible.tolist() == [True, False, False]  # 7, 3 and 0 of 10 are left
    assert centres[0, 0] == pytest.approx((100 + 107) / 2 * 64 / 210 - 0.5)


def test_a_region_holds_whole_pixels_only():
    assert region_of((0.0, 0.0, 210.0, 160.0)) == (0, 0, 64, 64)
    assert region_of((34.0, 20.0, 194.0, 140.0)) == (11, 8, 59, 56)


def test_the_ball_of_our_own_pong_hides_behind_the_paddles():
    (ball,) = [o for o in GAMES["synthetic_pong"].objects if o.name == "ball"]
    ram = np.zeros((4, len(STATE)), np.uint8)
    ram[:, STATE.index("ball_row")] = 20
    ram[:, STATE.index("ball_visible")] = [1, 1, 1, 0]
    face = court().other_column + court().paddle_width
    ram[:, STATE.index("ball_column")] = [face, face - 1, court().own_column - 1, 30]
    centres, visible = ball.locate(ram)
    assert visible.tolist() == [True, False, False, False]
    assert centres[0].tolist() == [20.5, face + 0.5]
