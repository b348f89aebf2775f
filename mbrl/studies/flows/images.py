"""Images of the study: a game's frames or a user's own in, integer levels out, held-out ones apart.

A user's images are a folder of pictures or an .npz without pickles; one of ten is held out, drawn
with a fixed seed. Held-out images of a game are other episodes. All are shrunk by averaging whole
boxes of pixels and quantised to 2**bits levels. Held-out images that equal a training image are not
measured, as AtariARI does it (Anand et al., arXiv:1906.08226, `remove_duplicates`): a model that
knows them by heart would look like a good model.
"""

import hashlib
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from mbrl.config.base import Settings
from mbrl.errors import ConfigError, MbrlError

Images = NDArray[np.uint8]

SIDE = 64
"""The side of a game's frames; places of objects are in their pixels."""
FRAMES_SEED = 0
PICTURES = {".png", ".jpg", ".jpeg"}
HELD_OUT, FEWEST = 10, 20
"""One of so many of a user's own images is held out; fewer are no data set."""
_AT_ONCE = 4096


class Source(Settings):
    """Which images, either a game's or those of a path, and how they are prepared."""

    game: str | None = Field(None, description="pong, breakout, ..., car_racing")
    path: Path | None = Field(
        None,
        title="images",
        description="a folder of PNG or JPG files, or an .npz with a uint8 array (N, H, W, C)",
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
    def is_shrunk(self) -> bool:
        """Whether these are a game's frames, made smaller."""
        return self.game is not None and self.size not in (None, SIDE)

    def settings(self) -> dict[str, Any]:
        """For JSON; no folder of this machine is in it."""
        of_game = {"steps": self.steps} if self.game else {}
        source = self.game or (self.path.name if self.path else "")
        size = None if self.game and not self.is_shrunk else self.size
        return {"source": source, "size": size, "bits": self.bits, **of_game}


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images as integer levels; those of a game in order, with the console's memory."""

    name: str  # of the source
    bits: int  # of a level; levels are 0 .. 2**bits - 1
    train: Images  # (N, H, W, C) uint8 levels
    held_out: Images  # (M, H, W, C), duplicates of training images included
    unseen: NDArray[np.int64]  # (K,) rows of `held_out` that equal no training image
    train_first: NDArray[np.bool_] | None = None  # (N,) rows that do not follow the row before
    held_out_first: NDArray[np.bool_] | None = None  # (M,)
    train_ram: NDArray[np.uint8] | None = None  # (N, R)
    held_out_ram: NDArray[np.uint8] | None = None  # (M, R)
    digest: str = ""  # of all levels

    @property
    def levels(self) -> int:
        """V, how many levels there are."""
        return 2**self.bits

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, height, width, channels = self.train.shape
        return channels, height, width

    def measured(self, count: int) -> NDArray[np.int64]:
        """At most `count` rows of `held_out` to measure on, evenly spread, the same for all."""
        places = np.linspace(0, len(self.unseen) - 1, min(count, len(self.unseen)))
        return self.unseen[places.round().astype(np.int64)]

    def pixels(self, levels: Images) -> Images:
        """Levels as intensities of 0 to 255: the middle of each bin."""
        shift = 8 - self.bits
        return (levels << np.uint8(shift)) + np.uint8((1 << shift) // 2)

    def about(self) -> dict[str, Any]:
        """What it is made of, for JSON."""
        return {
            "shape": list(self.shape),
            "bits": self.bits,
            "train": len(self.train),
            "held_out": len(self.held_out),
            "duplicates_removed": len(self.held_out) - len(self.unseen),
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
            "bench flow: expected a game, or --images with a folder or an .npz; got "
            + ("both" if source.game else "neither")
        )
    if source.path is not None:
        return _prepared(source, *read_pictures(source.path))
    from mbrl.studies.fidelity.frames import collect_frames, load_frames
    from mbrl.studies.fidelity.games import find_game

    game = find_game(str(source.game), "flow")
    folder = source.frames or Path("runs") / "fidelity" / str(source.game) / "frames"
    held_out_steps = max(1000, 12 * source.steps // 100)  # as in the fidelity study
    stores = collect_frames(game, folder, source.steps, held_out_steps, FRAMES_SEED)
    train, held_out = (load_frames(store) for store in stores)
    return _prepared(
        source,
        np.asarray(train.obs, np.uint8),
        np.asarray(held_out.obs, np.uint8),
        train_first=train.is_first,
        held_out_first=held_out.is_first,
        train_ram=train.ram,
        held_out_ram=held_out.ram,
    )


def _prepared(source: Source, train: Images, held_out: Images, **more: Any) -> ImageSet:
    train, held_out = (
        quantised(shrunk(images, source.size, source.name), source.bits)
        for images in (train, held_out)
    )
    rows = unseen_rows(train, held_out)
    if len(rows) == 0:
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
        unseen=rows,
        digest=digest.hexdigest(),
        **more,
    )


def shrunk(images: Images, size: int | None, name: str = "images") -> Images:
    """Images (N, H, W, C) with sides of `size` pixels, each the rounded mean of a box of pixels."""
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
    for start in range(0, len(images), _AT_ONCE):
        some = images[start : start + _AT_ONCE]
        boxes = some.reshape(len(some), size, box, size, box, -1).astype(np.float32)
        parts.append(np.rint(boxes.mean((2, 4))).astype(np.uint8))
    return np.concatenate(parts)


def quantised(images: Images, bits: int) -> Images:
    """Intensities of 0 to 255 as levels of 0 to 2**bits - 1, by their highest bits."""
    return images >> np.uint8(8 - bits)


def unseen_rows(train: Images, held_out: Images) -> NDArray[np.int64]:
    """Rows of `held_out` that equal no image of `train`, ascending."""
    seen, marks = (
        [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
        for images in (train, held_out)
    )
    known = set(seen)
    return np.flatnonzero([mark not in known for mark in marks])


# -- a user's own images --------------------------------------------------------------------------


def read_pictures(path: Path) -> tuple[Images, Images]:
    """Read a folder of pictures or an .npz: training and held-out images (N, H, W, C) uint8."""
    if path.is_dir():
        images = _folder(path)
    elif path.is_file() and path.suffix == ".npz":
        images = _npz(path)
    else:
        got = "a file that is no .npz" if path.exists() else "nothing there"
        expected = "a folder of PNG or JPG files, or an .npz with a uint8 array (N, H, W, C)"
        raise _wrong(path, expected, got)
    if len(images) < FEWEST:
        raise _wrong(path, f"at least {FEWEST} images", len(images))
    order = np.random.default_rng(0).permutation(len(images))
    count = -(-len(images) // HELD_OUT)
    return images[np.sort(order[count:])], images[np.sort(order[:count])]


def _wrong(path: Path, expected: str, got: object) -> MbrlError:
    return MbrlError(f"--images {path}: expected {expected}, got {got}")


def _folder(path: Path) -> Images:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES)
    if not files:
        got = "none of them in it"
        if any(path.glob("*_batch*")):
            got = "CIFAR's batches, pickles that can run any code; save them as an .npz"
        raise _wrong(path, "a folder with PNG or JPG files", got)
    images = [_picture(file) for file in files]
    shapes = {image.shape[:2]: file for image, file in zip(images, files, strict=True)}
    if len(shapes) > 1:
        sizes = [f"{width} x {height} ({file.name})" for (height, width), file in shapes.items()]
        raise _wrong(path, "images of one size", f"{' and '.join(sizes[:2])}; resize them first")
    channels = max(image.shape[2] for image in images)  # grey ones among colours become colours
    return np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])


def _picture(file: Path) -> Images:
    """One file as (H, W, C), grey or RGB."""
    try:
        with Image.open(file) as image:
            grey = image.mode in ("1", "L", "I;16", "LA")
            array = np.asarray(image.convert("L" if grey else "RGB"), np.uint8)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise _wrong(file, "a picture", f"an error: {error}") from error
    return array[..., None] if array.ndim == 2 else array


def _npz(path: Path) -> Images:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise _wrong(path, "an .npz of plain arrays", f"an error: {error}") from error
    usable = {
        name: array
        for name, array in arrays.items()
        if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] in (1, 3)
    }
    if "images" not in usable and len(usable) != 1:
        found = ", ".join(f"{name} {a.dtype}{a.shape}" for name, a in arrays.items()) or "no arrays"
        expected = "one uint8 array (N, H, W, C) with 1 or 3 channels, or one called images"
        raise _wrong(path, expected, found)
    return usable.get("images", next(iter(usable.values())))
