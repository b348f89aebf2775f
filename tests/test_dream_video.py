"""The dream video: real rows, whole episodes, nothing copied from frames the dream must not see."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from mbrl.episode import Episode
from mbrl.replay import ReplayStore
from mbrl.report.dream_video import (
    imagine_open_loop,
    newest_sequences,
    to_rgb,
    write_dream_video,
)
from mbrl.world_model.layouts import make_world_model
from mbrl.world_model.model import WorldModel
from mbrl.world_model.settings import WorldModelSettings


def fragment(name: str, t0: int, rows: int, ended: bool = False) -> Episode:
    """Frames whose first pixel counts the steps in binary over the channels."""
    steps = np.arange(t0, t0 + rows)
    obs = np.zeros((rows, 6, 6, 4), np.uint8)
    obs[:, 0, 0] = (steps[:, None] >> np.arange(4)) & 1
    actions = np.where(np.arange(rows) == rows - 1, 0, 1) if ended else np.ones(rows)
    flags = np.zeros(rows, np.bool_)
    return Episode(
        eps_id=name,
        t0=t0,
        obs=obs,
        actions=actions.astype(np.int64),
        rewards=np.zeros(rows, np.float32),
        terminateds=flags,
        truncateds=flags,
        life_loss=flags,
        ended=ended,
    )


def count(frames: np.ndarray) -> np.ndarray:
    """The step each frame shows."""
    return (frames[..., 0, 0, :].astype(int) << np.arange(4)).sum(-1)


@pytest.fixture
def store(tmp_path: Path) -> ReplayStore:
    store = ReplayStore(tmp_path, env_id="x")
    store.commit([fragment("long", 0, 5), fragment("short", 0, 3, ended=True)], "c0", 8)
    store.commit([fragment("long", 5, 6, ended=True)], "c0", 16)
    return store


@pytest.fixture
def model() -> WorldModel:
    torch.manual_seed(0)
    space = spaces.Box(0, 1, (6, 6, 4), np.uint8)
    return make_world_model(space, spaces.Discrete(3), WorldModelSettings(bf16=False)).eval()


def test_newest_sequences_stitch_fragments_and_are_as_long_as_the_shortest_allows(
    store: ReplayStore,
) -> None:
    batch = newest_sequences(store, count=1, length=8)
    assert batch is not None and batch.shape == (1, 8)
    assert count(batch.obs[0]).tolist() == [3, 4, 5, 6, 7, 8, 9, 10]
    assert batch.is_first[0].tolist() == [True] + [False] * 7
    assert batch.prev_action[0].tolist() == [0] + [1] * 7
    batch = newest_sequences(store, count=2, length=8)
    assert batch is not None and batch.shape == (2, 3)


def test_the_dream_sees_no_frame_after_its_context(store: ReplayStore, model: WorldModel) -> None:
    batch = newest_sequences(store, count=1, length=8)
    assert batch is not None
    device = torch.device("cpu")
    changed = batch.obs.copy()
    changed[:, 4:] = 1 - changed[:, 4:]
    other = type(batch)(**{**vars(batch), "obs": changed})
    dreams = []
    for given in (batch, other):
        generator = torch.Generator().manual_seed(0)
        latents: list[torch.Tensor] = []
        # what is decoded, not the pixels: the Gumbel noise is shared between rows of one call
        model.decode = lambda latent, _, into=latents: (  # type: ignore[method-assign]
            into.append(latent.features) or torch.zeros(len(latent.hidden), 6, 6, 4).byte()
        )
        imagine_open_loop(model, given, 4, generator, device)
        dreams.append(latents[0])
    posterior, dream = dreams[0][:8], dreams[0][8:]
    assert torch.equal(dream, dreams[1][8:])
    assert not torch.equal(posterior[4:], dreams[1][4:8])


def test_film_of_a_real_store_is_written(
    store: ReplayStore, model: WorldModel, tmp_path: Path
) -> None:
    def film(store: ReplayStore) -> Path | None:
        generator = torch.Generator().manual_seed(0)
        path = tmp_path / "dream.mp4"
        return write_dream_video(path, model, store, generator, torch.device("cpu"))

    assert film(ReplayStore(tmp_path / "empty", env_id="x")) is None
    store.commit([fragment("third", 0, 12)], "c0", 32)
    assert film(store) is None  # four sequences are wanted, and the shortest has three rows
    store.commit([fragment("fourth", 0, 12), fragment("fifth", 0, 12)], "c0", 64)
    path = film(store)
    assert path is not None and path.stat().st_size > 1000


@pytest.mark.parametrize(
    ("channels", "low", "high", "dtype"),
    [
        *[(channels, 0, 255, np.uint8) for channels in (1, 2, 3, 4, 10, 12)],
        *[(channels, 0, 1, np.uint8) for channels in (1, 2, 3, 4, 10, 20)],
        (12, 0, 10, np.int32),
        (2, 5, 9, np.int64),
        (4, 0, 1, np.float32),
        (4, 0, 1, np.bool_),
    ],
)
def test_every_kind_of_frame_becomes_colours(
    channels: int, low: int, high: int, dtype: type
) -> None:
    frames = np.full((channels, 5, 5, channels), low, dtype)
    frames[np.arange(channels), 0, 0, np.arange(channels)] = high  # each channel in a frame
    colours = to_rgb(frames, low, high - low)
    assert (colours.shape, colours.dtype) == ((channels, 5, 5, 3), np.uint8)
    assert not colours[:, 1:].any()
    assert len(np.unique(colours[:, 0, 0], axis=0)) == channels  # each has a colour of its own


def test_intensities_of_several_channels_are_shades() -> None:
    frames = np.zeros((3, 1, 1, 2), np.uint8)
    frames[1], frames[2] = 100, 200
    dark, middle, bright = to_rgb(frames)[:, 0, 0].astype(int).tolist()
    assert dark == [0, 0, 0] and all(0 < a < b for a, b in zip(middle, bright, strict=True))


@pytest.mark.parametrize("shape", [(6, 6, 12), (2, 2, 1), (5, 9, 2)])
def test_film_of_any_image_is_written(shape: tuple[int, ...], tmp_path: Path) -> None:
    space = spaces.Box(0, 10, shape, np.int32)
    model = make_world_model(space, spaces.Discrete(3), WorldModelSettings(layout="grid")).eval()
    store = ReplayStore(tmp_path / "replay")
    pieces = [fragment(str(i), 0, 12) for i in range(4)]
    frames = np.random.default_rng(0).integers(0, 11, (12, *shape), np.int32)
    store.commit([replace(piece, obs=frames) for piece in pieces], "c0", 48)
    path = tmp_path / "dream.mp4"
    generator = torch.Generator().manual_seed(0)
    assert write_dream_video(path, model, store, generator, torch.device("cpu")) == path
    assert path.stat().st_size > 500


def test_a_model_without_images_is_not_filmed(store: ReplayStore, tmp_path: Path) -> None:
    path, generator = tmp_path / "dream.mp4", torch.Generator()
    blind: Any = torch.nn.Linear(1, 1)
    assert write_dream_video(path, blind, store, generator, torch.device("cpu")) is None
