"""A tiny game made by hand, and two models of it that need no training: one knows all, one nothing.

A ball of one pixel bounces in a dark field of 16 x 16, a paddle of 3 x 1 moves beside it. The first
two pixels of each frame hold its number, so that no two frames are alike and the oracle can look
every frame up. Shared by the tests of the fidelity measures.
"""

from types import SimpleNamespace

import numpy as np
import torch

from envs import EnvSettings
from mbrl.studies.fidelity.frames import Frames
from mbrl.studies.fidelity.games import Game, RamVariable, SceneObject
from mbrl.world_model.latent import ImaginedStep, Latent, Observed

SIZE, DARK, BRIGHT = 16, 40, 240
FIELD, EDGE = (1, 0, 16, 13), (1, 14, 16, 15)
EPISODE = 100
BALL_ROW, BALL_COLUMN, VISIBLE, PADDLE_ROW = range(4)


def swing(time, low, high):
    """Back and forth between two rows, one step at a time."""
    period = 2 * (high - low)
    place = time % period
    return low + np.where(place > high - low, period - place, place)


def locate_ball(ram):
    return ram[:, [BALL_ROW, BALL_COLUMN]].astype(float), ram[:, VISIBLE] > 0


def locate_paddle(ram):
    rows = ram[:, PADDLE_ROW].astype(float)
    return np.stack([rows, np.full(len(ram), 14.0)], 1), np.ones(len(ram), bool)


BALL = SceneObject("ball", FIELD, locate_ball)
PADDLE = SceneObject("paddle", EDGE, locate_paddle, window=(3, 1))
GAME = Game(
    name="billiard",
    env=EnvSettings(id="reverie/Pong-v0", ram=True),
    variables={
        "ball_row": RamVariable(BALL_ROW, "small"),
        "ball_column": RamVariable(BALL_COLUMN, "small"),
        "paddle_row": RamVariable(PADDLE_ROW, "agent"),
        "visible": RamVariable(VISIBLE, "misc"),  # hardly ever 0: too little entropy for a probe
    },
    objects=(BALL, PADDLE),
)


def draw(ram):
    """Frames of memories (N, 4): (N, 16, 16, 1)."""
    obs = np.full((len(ram), SIZE, SIZE, 1), DARK, np.uint8)
    n = np.arange(len(ram))
    seen = ram[:, VISIBLE] > 0
    obs[n[seen], ram[seen, BALL_ROW], ram[seen, BALL_COLUMN]] = BRIGHT
    for offset in (-1, 0, 1):
        obs[n, ram[:, PADDLE_ROW].astype(int) + offset, 14] = BRIGHT
    return obs


def play(episodes, start=0, base=0):
    """Frames of so many episodes; `base` numbers the first frame, `start` shifts the motion."""
    n = episodes * EPISODE
    time = np.arange(n) + start
    t = np.arange(n) % EPISODE
    ram = np.stack(
        [swing(time, 2, 14), swing(5 * time, 1, 11), t != 99, swing(time // 2, 2, 13)], 1
    ).astype(np.uint8)
    obs = draw(ram)
    number = base + np.arange(n)
    obs[:, 0, 0, 0], obs[:, 0, 1, 0] = number // 256, number % 256
    return Frames(
        obs=obs,
        prev_action=np.where(t == 0, 0, time % 3),
        reward=(t % 10 == 9).astype(np.float32),
        terminated=t == 99,
        is_first=t == 0,
        ram=ram,
    )


def numbers(obs):
    """The number in the first two pixels of frames (..., 16, 16, 1)."""
    obs = torch.as_tensor(obs).long()
    return obs[..., 0, 0, 0] * 256 + obs[..., 0, 1, 0]


def one_hot(values, classes):
    return torch.nn.functional.one_hot(torch.as_tensor(values).long(), classes).float()


def named(code):
    """The number of the frame that an oracle's code (N, Z) names."""
    return (code[:, 0] * 2**14).round().long()


class Oracle(torch.nn.Module):
    """Remembers every frame: its code names the frame, and its dreams are what really happened.

    Its code costs 2 nats against the dynamics' prior and 3 against the static one; a frame costs 1
    nat with the right code and 11 with another one, whatever the state.
    """

    images = SimpleNamespace(span=255)

    def __init__(self, *parts):
        super().__init__()
        decoder = SimpleNamespace(likelihood="categorical")
        self.settings = SimpleNamespace(decoder=decoder, posterior="frame")
        self.device = torch.device("cpu")
        self.known = {}
        for frames in parts:
            for i, number in enumerate(numbers(frames.obs).tolist()):
                self.known[number] = (frames, i)

    def to_levels(self, obs):
        return obs.movedim(-1, -3)

    def to_pixels(self, levels):
        return levels.movedim(-3, -1)

    def look_up(self, number, what):
        rows = [self.known[int(n)] for n in number.flatten()]
        return torch.as_tensor(np.stack([getattr(frames, what)[i] for frames, i in rows]))

    def latents(self, number):
        """Code: the frame's number and its state as one-hot vectors. State: a constant."""
        ram = self.look_up(number, "ram").view(*number.shape, 4)
        parts = [one_hot(ram[..., i].numpy(), 16) for i in (BALL_ROW, BALL_COLUMN, PADDLE_ROW)]
        code = torch.cat([number.unsqueeze(-1) / 2**14, *parts], -1)
        return Latent(torch.full((*number.shape, 1), 0.5), code)

    def initial(self, n, device):
        return None

    def inputs(self, batch):
        return batch.prev_action, batch.obs, batch.is_first

    def observe(self, latent, prev_action, obs, is_first, generator):
        latent = self.latents(numbers(obs))
        return Observed(latent, latent.code[..., :1])

    def vectors(self, latent):
        return latent.code, latent.hidden

    def rates(self, observed):
        rows = len(observed.posterior)
        return torch.full((rows,), 2.0), torch.full((rows,), 3.0)

    def frame_nats(self, obs, latent, generator=None):
        return 1.0 + 10.0 * (numbers(obs) != named(latent.code))

    def decode(self, latent, generator):
        return self.look_up(named(latent.code), "obs")

    def imagine_step(self, latent, action, generator, *, mode=False):
        number = named(latent.code) + 1
        assert torch.equal(action, self.look_up(number, "prev_action"))
        going_on = 1.0 - self.look_up(number, "terminated").float()
        return ImaginedStep(self.latents(number), self.look_up(number, "reward"), going_on)


class Blind(Oracle):
    """Sees nothing, draws an empty field, expects nothing and always goes on."""

    def latents(self, number):
        return Latent(torch.zeros(*number.shape, 1), torch.zeros(*number.shape, 49))

    def frame_nats(self, obs, latent, generator=None):
        return torch.full((len(obs),), 7.0)

    def decode(self, latent, generator):
        return torch.full((len(latent.code), SIZE, SIZE, 1), DARK, dtype=torch.uint8)

    def imagine_step(self, latent, action, generator, *, mode=False):
        n = len(latent.code)
        return ImaginedStep(self.latents(torch.zeros(n)), torch.zeros(n), torch.ones(n))
