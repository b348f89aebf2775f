"""Images of the study: a game's frames or a user's own in, integer levels out, held-out ones apart.

Images are shrunk by averaging whole boxes of pixels and quantised to 2**bits levels. Held-out
images of a game are other episodes; those that are also in the training images, to the last level,
are not measured, as AtariARI does it (Anand et al., arXiv:1906.08226, `remove_duplicates`), because
knowing them by heart would count as modelling them. What learns from them is not known here.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mbrl.config.settings import Settings
from mbrl.errors import ConfigError, MbrlError
from mbrl.studies.flows.sources import read_pictures

if TYPE_CHECKING:
    from mbrl.studies.fidelity.games import Game

Images = NDArray[np.uint8]

SIDE = 64
"""The side of a game's frames, in whose pixels the places of objects are known."""
FRAMES_SEED = 0
_AT_ONCE = 4096


class Source(Settings):
    """Which images, and how they are prepared; everything that decides them.

    Either a game, a name in `mbrl.studies.fidelity.games.GAMES`, or a path is given.
    """

    game: str | None = Field(None, description="pong, breakout, ..., car_racing")
    path: Path | None = Field(
        None,
        title="images",
        description="a folder of PNG or JPG files, an .npz with a uint8 array (N, H, W, C), or the "
        "folder of CIFAR-10's python batches",
    )
    size: int | None = Field(
        None, ge=1, description="side in pixels, shrunk by averaging; default: as they are"
    )
    bits: int = Field(5, description="of an intensity, 1 to 8")
    steps: int = Field(100_000, description="agent steps of a game's frames, as in bench fidelity")
    frames: Path | None = Field(
        None,
        repr=False,
        description="folder of a game's frames; default: runs/fidelity/GAME/frames",
    )

    @property
    def name(self) -> str:
        """Of files and tables: `pong`, `pong_32`, `my_pictures_8bit`."""
        stem = self.game or re.sub(r"\W+", "_", self.path.stem if self.path else "").strip("_")
        size = f"_{self.size}" if self.size and not (self.game and self.size == SIDE) else ""
        return f"{stem or 'images'}{size}{f'_{self.bits}bit' if self.bits != 5 else ''}"

    @property
    def frames_dir(self) -> Path:
        """Where the game's frames are: those of the fidelity study, unless told otherwise."""
        return self.frames or Path("runs") / "fidelity" / str(self.game) / "frames"

    @property
    def held_out_steps(self) -> int:
        """As in the fidelity study, whose frames these are."""
        return max(1000, 12 * self.steps // 100)

    @property
    def is_shrunk(self) -> bool:
        """Whether these are a game's frames, but smaller."""
        return self.game is not None and self.size not in (None, SIDE)

    def settings(self) -> dict[str, Any]:
        """For JSON; no folder of this machine is in it."""
        of_game = {"steps": self.steps} if self.game else {}
        source = self.game or (self.path.name if self.path else "")
        size = None if self.game and not self.is_shrunk else self.size
        return {"source": source, "size": size, "bits": self.bits, **of_game}


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images as integer levels.

    Attributes:
        name: of the source.
        bits: of a level; levels are 0 .. 2**bits - 1.
        train: (N, H, W, C) uint8 levels.
        held_out: (M, H, W, C) uint8 levels, duplicates of training images included.
        kept: (K,) int64, rows of `held_out` that are in no training image.
        train_first: (N,) bool, rows that do not follow the row before; None without an order.
        held_out_first: (M,), likewise.
        train_ram: (N, R) uint8, the console's memory; None where there is none.
        held_out_ram: (M, R), likewise.
        digest: of all levels.
    """

    name: str
    bits: int
    train: Images
    held_out: Images
    kept: NDArray[np.int64]
    train_first: NDArray[np.bool_] | None = None
    held_out_first: NDArray[np.bool_] | None = None
    train_ram: NDArray[np.uint8] | None = None
    held_out_ram: NDArray[np.uint8] | None = None
    digest: str = ""

    @property
    def levels(self) -> int:
        """V, how many levels there are."""
        return 2**self.bits

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, height, width, channels = self.train.shape
        return channels, height, width

    @property
    def dimensions(self) -> int:
        """D, numbers in an image."""
        return int(np.prod(self.shape))

    def measured(self, count: int) -> NDArray[np.int64]:
        """At most `count` rows of `held_out` to measure on, evenly spread, the same for all."""
        places = np.linspace(0, len(self.kept) - 1, min(count, len(self.kept)))
        return self.kept[places.round().astype(np.int64)]

    def pixels(self, levels: Images) -> Images:
        """Levels as intensities of 0 to 255: the middle of each bin."""
        return _middle(levels, self.bits)

    def about(self) -> dict[str, Any]:
        """What it is made of, for JSON."""
        return {
            "shape": list(self.shape),
            "bits": self.bits,
            "train": len(self.train),
            "held_out": len(self.held_out),
            "duplicates_removed": len(self.held_out) - len(self.kept),
            "ordered": self.held_out_first is not None,
            "digest": self.digest,
        }


def load_images(source: Source) -> ImageSet:
    """Read and prepare the images of a source; a game's frames are collected if they are missing.

    Raises:
        ConfigError: the game is unknown, or the numbers contradict each other.
        MbrlError: images cannot be read, are too few, or do not fit the size.
    """
    if not 1 <= source.bits <= 8:
        raise ConfigError(f"bench flow: expected 1 to 8 bits, got --bits {source.bits}")
    if (source.game is None) == (source.path is None):
        raise ConfigError(
            "bench flow: expected a game, or --images with a folder, an .npz or CIFAR-10's "
            "batches; got " + ("both" if source.game else "neither")
        )
    if source.path is not None:
        found = read_pictures(source.path)
        return _prepared(source, found.train, found.held_out, {})
    from mbrl.studies.fidelity.frames import collect_frames, load_frames

    stores = collect_frames(
        _game(source), source.frames_dir, source.steps, source.held_out_steps, FRAMES_SEED
    )
    train, held_out = (load_frames(store) for store in stores)
    known = {
        "train_first": train.is_first,
        "held_out_first": held_out.is_first,
        "train_ram": train.ram,
        "held_out_ram": held_out.ram,
    }
    return _prepared(
        source, np.asarray(train.obs, np.uint8), np.asarray(held_out.obs, np.uint8), known
    )


def _game(source: Source) -> "Game":
    from mbrl.studies.fidelity.games import find_game

    return find_game(str(source.game), "flow")


def _prepared(source: Source, train: Images, held_out: Images, known: dict[str, Any]) -> ImageSet:
    train, held_out = (
        quantised(shrunk(images, source.size, source.name), source.bits)
        for images in (train, held_out)
    )
    kept = unseen(train, held_out)
    if len(kept) == 0:
        raise MbrlError(
            f"{source.name}: expected held-out images that are not training images, got "
            f"{len(held_out)} of which all are; use more bits, a larger size or more images"
        )
    digest = hashlib.blake2b(digest_size=8)
    for images in (train, held_out):
        digest.update(str(images.shape).encode())
        digest.update(np.ascontiguousarray(images).data)
    return ImageSet(
        name=source.name,
        bits=source.bits,
        train=train,
        held_out=held_out,
        kept=kept,
        digest=digest.hexdigest(),
        **known,
    )


def drawn_sources(source: Source) -> list[Source]:
    """The images that drawing is timed on: the study's, and a game's whole frames."""
    return [source, *([source.model_copy(update={"size": None})] if source.is_shrunk else [])]


def name_of(shape: tuple[int, int, int]) -> str:
    """A shape (C, H, W) in tables and JSON, `32x32`."""
    return f"{shape[1]}x{shape[2]}"


# -- small pure functions ------------------------------------------------------------------------


def shrunk(images: Images, size: int | None, name: str = "images") -> Images:
    """Images (N, H, W, C) with sides of `size` pixels, each the rounded mean of a box of pixels.

    Raises:
        MbrlError: the images are not square, or `size` does not divide their side.
    """
    height, width = images.shape[1:3]
    if size is None or (height, width) == (size, size):
        return images
    if height != width or height % size:
        raise MbrlError(
            f"{name}: expected square images whose side is a multiple of {size}, got "
            f"{width} x {height}; choose a --size that divides it, or resize them first"
        )
    box = height // size
    parts = []
    for some in _chunks(images):
        boxes = some.reshape(len(some), size, box, size, box, -1).astype(np.float32)
        parts.append(np.rint(boxes.mean((2, 4))).astype(np.uint8))
    return np.concatenate(parts)


def quantised(images: Images, bits: int) -> Images:
    """Intensities of 0 to 255 as levels of 0 to 2**bits - 1, by their highest bits."""
    return images >> np.uint8(8 - bits)


def _middle(levels: Images, bits: int) -> Images:
    shift = np.uint8(8 - bits)
    return (levels << shift) + np.uint8((1 << (8 - bits)) // 2)


def unseen(train: Images, held_out: Images) -> NDArray[np.int64]:
    """Rows of `held_out` that equal no image of `train`, ascending."""
    seen = set(_fingerprints(train))
    return np.asarray(
        [row for row, print_ in enumerate(_fingerprints(held_out)) if print_ not in seen], np.int64
    )


def _fingerprints(images: Images) -> Iterator[bytes]:
    for image in images:
        yield hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def _chunks(images: Images) -> Iterator[Images]:
    for start in range(0, len(images), _AT_ONCE):
        yield images[start : start + _AT_ONCE]
