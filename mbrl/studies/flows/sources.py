"""A user's own images: a folder of pictures, an .npz, or CIFAR-10's python batches.

A path goes in, arrays (N, H, W, C) of uint8 come out, as they are on disk. Nothing is unpickled:
`.npz` files are read without pickles, CIFAR's batches by `pickled.py`. Sizes, levels and duplicates
are for `images.py`.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mbrl.errors import MbrlError
from mbrl.studies.flows.pickled import read_pickled

Images = NDArray[np.uint8]

PICTURES = {".png", ".jpg", ".jpeg"}
HELD_OUT = 10
"""One image of so many is held out where the files do not say which."""
FEWEST = 20
"""Fewer images than that are no data set."""
_CIFAR_SIDE, _CIFAR_TEST = 32, "test_batch"


@dataclass(frozen=True)
class Pictures:
    """Images as they were found.

    Attributes:
        train: (N, H, W, C) uint8.
        held_out: (M, H, W, C) uint8.
        kind: "folder", "npz" or "cifar".
    """

    train: Images
    held_out: Images
    kind: str


def read_pictures(path: Path) -> Pictures:
    """Read a folder of pictures, an .npz or a folder of CIFAR-10 batches.

    Held out are CIFAR's test batch, or one image of ten drawn with a fixed seed.

    Raises:
        MbrlError: there is nothing to read, something cannot be read, or images differ in size.
    """
    path = Path(path)
    if path.is_dir() and (path / _CIFAR_TEST).is_file():
        return _cifar(path)
    if path.is_dir():
        return _split(_folder(path), path, "folder")
    if path.is_file() and path.suffix == ".npz":
        return _split(_npz(path), path, "npz")
    got = "a file that is no .npz" if path.exists() else "nothing there"
    raise MbrlError(
        f"--images {path}: expected a folder of PNG or JPG files, an .npz with a uint8 array "
        f"(N, H, W, C), or the folder of CIFAR-10's python batches; got {got}"
    )


def _split(images: Images, path: Path, kind: str) -> Pictures:
    if len(images) < FEWEST:
        raise MbrlError(f"--images {path}: expected at least {FEWEST} images, got {len(images)}")
    order = np.random.default_rng(0).permutation(len(images))
    count = -(-len(images) // HELD_OUT)
    return Pictures(images[np.sort(order[count:])], images[np.sort(order[:count])], kind)


# -- a folder of pictures ------------------------------------------------------------------------


def _folder(path: Path) -> Images:
    try:
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES)
    except OSError as error:
        raise MbrlError(f"--images {path}: expected a folder to read, got: {error}") from error
    if not files:
        raise MbrlError(
            f"--images {path}: expected a folder with PNG or JPG files, got none of them in it"
        )
    images = [_picture(file) for file in files]
    shapes = {image.shape[:2]: file for image, file in zip(images, files, strict=True)}
    if len(shapes) > 1:
        (one, first), (other, second) = list(shapes.items())[:2]
        raise MbrlError(
            f"--images {path}: expected images of one size, got {one[1]} x {one[0]} "
            f"({first.name}) and {other[1]} x {other[0]} ({second.name}); resize them first"
        )
    channels = max(image.shape[2] for image in images)  # grey ones among colours become colours
    return np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])


def _picture(file: Path) -> Images:
    """One file as (H, W, C), grey or RGB."""
    try:
        with Image.open(file) as image:
            grey = image.mode in ("1", "L", "I;16", "LA")
            array = np.asarray(image.convert("L" if grey else "RGB"), np.uint8)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise MbrlError(f"--images: expected a picture in {file}, got: {error}") from error
    return array[..., None] if array.ndim == 2 else array


# -- one array -----------------------------------------------------------------------------------


def _npz(path: Path) -> Images:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise MbrlError(
            f"--images {path}: expected an .npz of plain arrays, got: {error}"
        ) from error
    usable = {name: array for name, array in arrays.items() if _is_images(array)}
    if "images" in usable:
        return usable["images"]
    if len(usable) != 1:
        found = ", ".join(f"{name} {a.dtype}{a.shape}" for name, a in arrays.items()) or "no arrays"
        raise MbrlError(
            f"--images {path}: expected one uint8 array (N, H, W, C) with 1 or 3 channels, or one "
            f"called images; got {found}"
        )
    return next(iter(usable.values()))


def _is_images(array: NDArray[Any]) -> bool:
    return array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] in (1, 3)


# -- CIFAR-10 ------------------------------------------------------------------------------------


def _cifar(path: Path) -> Pictures:
    batches = sorted(path.glob("data_batch_*"))
    if not batches:
        raise MbrlError(
            f"--images {path}: expected data_batch_1 ... beside {_CIFAR_TEST}, as in "
            f"cifar-10-batches-py; got none"
        )
    train = np.concatenate([_cifar_batch(batch) for batch in batches])
    return Pictures(train, _cifar_batch(path / _CIFAR_TEST), "cifar")


def _cifar_batch(path: Path) -> Images:
    """One batch as (n, 32, 32, 3)."""
    content = read_pickled(path)
    data = None
    if isinstance(content, dict):
        data = content.get(b"data", content.get("data"))
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3 * _CIFAR_SIDE**2:
        raise MbrlError(
            f"{path}: expected a CIFAR-10 batch with data (n, 3072) of uint8, got "
            f"{getattr(data, 'shape', type(content).__name__)}"
        )
    planes = data.reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
