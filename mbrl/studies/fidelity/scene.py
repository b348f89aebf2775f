"""One game as its detectors see it: the still backdrops, and where every object really is.

Fitted on training frames once per model, because a model draws in its own intensity levels and is
measured in them. Frames and their memories go in, contrasts and truths come out.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mbrl.errors import ConfigError
from mbrl.replay import ReplayStore
from mbrl.studies.fidelity.follow import quantised, rng_of
from mbrl.studies.fidelity.objects import Detector, Truth, contrast, fit_detectors, truth
from mbrl.world_model.model import WorldModel

if TYPE_CHECKING:
    from mbrl.studies.fidelity.frames import Frames
    from mbrl.studies.fidelity.games import Game

TEXTURE = "texture_id"
"""The variable that says which static backdrop a frame has, where a game has several."""
FITTED = 1024
"""Training frames that backdrops and masses are learnt from."""


class Scene:
    """Detectors of all objects of a game, for drawings of one model."""

    def __init__(self, model: WorldModel, game: "Game", train: "Frames", seed: int) -> None:
        """Fit on random training frames.

        Raises:
            ValueError: the frames have no memory, or an object cannot be told from the backdrop.
        """
        if train.ram is None:
            raise ValueError(f"{game.name}: expected the console's memory with every frame")
        texture = texture_byte(game)
        rows = _rows(rng_of(seed, "scene"), train.ram, texture)
        images, ram = quantised(model, train.obs[rows]), train.ram[rows]
        self.model = model
        self.backdrops = Backdrops(images, ram, texture)
        detectors = fit_detectors(game.objects, self.contrasts(images, ram), ram)
        alone = alone_in_frames(game, train)
        self.detectors: dict[str, Detector] = {
            name: replace(found, alone=alone[name]) for name, found in detectors.items()
        }

    def contrasts(self, images: NDArray[np.uint8], ram: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(N, H, W, 2) contrasts of images in the model's levels, drawn or `quantised`."""
        return contrast(images, self.backdrops.of(ram))

    def truths(self, images: NDArray[np.uint8], ram: NDArray[np.uint8]) -> dict[str, Truth]:
        """Where every object is in real, quantised images with their memories."""
        contrasts = self.contrasts(images, ram)
        return {name: truth(found, contrasts, ram) for name, found in self.detectors.items()}


def alone_in_frames(game: "Game", train: "Frames") -> dict[str, bool]:
    """Whether each object is `Detector.alone`, by name: the same for every model and seed.

    It decides what recall means, so it must not depend on the levels that a model draws in, nor on
    the frames that its detectors are fitted on.

    Raises:
        ValueError: as `Scene`.
    """
    if train.ram is None:
        raise ValueError(f"{game.name}: expected the console's memory with every frame")
    texture = texture_byte(game)
    rows = _rows(rng_of(0, "scene/alone"), train.ram, texture)
    images, ram = np.asarray(train.obs[rows], np.uint8), train.ram[rows]
    contrasts = contrast(images, Backdrops(images, ram, texture).of(ram))
    return {
        name: found.alone for name, found in fit_detectors(game.objects, contrasts, ram).items()
    }


def require_backdrops(game: "Game", train: ReplayStore, held_out: ReplayStore) -> None:
    """Refuse frames whose held-out part has a texture that the training part has not.

    Raises:
        ConfigError: it has; to be asked before anything is trained.
    """
    texture = texture_byte(game)
    if texture is None:
        return
    known, wanted = (
        {
            int(name)
            for episode in store.episodes()
            if episode.ram is not None
            for name in np.unique(episode.ram[:, texture])
        }
        for store in (train, held_out)
    )
    if wanted - known:
        raise ConfigError(
            f"{game.name}: expected every texture of the held-out frames among the training "
            f"frames, got {sorted(wanted)} and {sorted(known)}; collect more frames with --steps, "
            f"into another --out"
        )


def _rows(
    rng: np.random.Generator, ram: NDArray[np.uint8], texture: int | None
) -> NDArray[np.int64]:
    """`FITTED` random rows of memories (N, R), as many of each texture as there are of any."""
    order = rng.permutation(len(ram))
    if texture is None:
        return order[:FITTED]
    names = ram[order, texture]
    known = np.unique(names)
    return np.concatenate([order[names == name][: FITTED // len(known)] for name in known])


class Backdrops:
    """The still picture behind each frame, fitted on training frames.

    One per-pixel median of all of them; or, in a game with several static textures, one for each
    value of its variable `texture_id`.
    """

    def __init__(
        self, images: NDArray[np.uint8], ram: NDArray[np.uint8], texture: int | None
    ) -> None:
        """Fit on quantised images (N, H, W, C); `texture` is the byte that names the texture."""
        self._texture = texture
        names = self._names(ram)
        self._stills = {
            int(name): np.median(images[names == name], axis=0).astype(np.float64)
            for name in np.unique(names)
        }

    def of(self, ram: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The backdrops of frames with memories (n, R): (H, W, C), or (n, H, W, C) if they differ.

        Raises:
            ValueError: a texture that no training frame had.
        """
        order, place = np.unique(self._names(ram), return_inverse=True)
        unknown = sorted(set(order.tolist()) - self._stills.keys())
        if unknown:
            raise ValueError(f"texture {unknown}: expected one of {sorted(self._stills)}")
        if len(self._stills) == 1:
            return next(iter(self._stills.values()))
        return np.stack([self._stills[int(name)] for name in order])[place]

    def _names(self, ram: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Which texture each frame has, 0 where there is but one."""
        return np.zeros(len(ram), np.uint8) if self._texture is None else ram[:, self._texture]


def texture_byte(game: "Game") -> int | None:
    """Which byte of the memory names the texture, if the game has more than one."""
    variable = game.variables.get(TEXTURE)
    return None if variable is None else variable.index
