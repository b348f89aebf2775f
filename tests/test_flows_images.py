"""Images of the flow study: read safely, shrunk, quantised, no duplicates; and what they cost."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mbrl.errors import MbrlError
from mbrl.studies.flows.baselines import (
    baselines,
    copy_last_bits,
    copy_weight,
    marginal,
    marginal_bits,
    png_bytes,
)
from mbrl.studies.flows.images import (
    ImageSet,
    Source,
    load_images,
    quantised,
    read_pictures,
    shrunk,
    unseen_rows,
)


def random_images(count: int, side: int = 8, channels: int = 1, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def one_pixel(*levels: int) -> Any:
    return np.array(levels, np.uint8).reshape(-1, 1, 1, 1)


# Preparing


def test_shrinking_takes_the_mean_of_each_box() -> None:
    image = np.array([[0, 2, 10, 10], [4, 6, 10, 10], [1, 1, 8, 8], [1, 2, 8, 9]], np.uint8)
    assert shrunk(image[None, ..., None], 2)[0, ..., 0].tolist() == [[3, 10], [1, 8]]


@pytest.mark.parametrize(
    ("bits", "levels", "pixels"),
    [(5, [0, 0, 1, 31], [4, 4, 12, 252]), (8, [0, 7, 8, 255], [0, 7, 8, 255])],
)
def test_levels_are_the_highest_bits_and_come_back_as_the_middle_of_their_bin(
    bits: int, levels: list[int], pixels: list[int]
) -> None:
    found = quantised(one_pixel(0, 7, 8, 255), bits)
    assert found.ravel().tolist() == levels
    images = ImageSet(name="x", bits=bits, train=found, held_out=found, unseen=np.arange(4))
    assert images.pixels(found).ravel().tolist() == pixels


def test_held_out_images_that_are_training_images_are_left_out() -> None:
    assert unseen_rows(one_pixel(1, 2, 3), one_pixel(2, 9, 3, 4, 4)).tolist() == [1, 3, 4]


def test_measured_rows_are_spread_over_unseen_images_and_never_duplicates() -> None:
    levels = one_pixel(*range(10))
    images = ImageSet(
        name="x", bits=8, train=levels, held_out=levels, unseen=np.array([1, 4, 7, 9])
    )
    assert images.measured(2).tolist() == [1, 9]
    assert images.measured(99).tolist() == [1, 4, 7, 9]


def test_a_source_has_a_name_for_every_size_and_depth() -> None:
    assert Source(game="pong").name == "pong"
    assert Source(game="pong", size=64).name == "pong"
    assert Source(game="pong", size=32, bits=8).name == "pong_32_8bit"
    assert Source(path=Path("a/my pictures.npz")).name == "my_pictures"


def test_a_game_s_frames_are_levels_in_order_with_their_memories(tmp_path: Path) -> None:
    source = Source(game="synthetic_pong", steps=800, frames=tmp_path / "frames")
    images = load_images(source)
    assert images.shape == (1, 64, 64) and images.train.max() < 32
    assert images.train_first is not None and images.train_first[0]
    assert images.train_ram is not None and len(images.train_ram) == len(images.train)
    about = images.about()
    assert about["duplicates_removed"] == len(images.held_out) - len(images.unseen)
    found = baselines(images, 64)
    assert 0 < found["copy_last"] < found["marginal"] < found["uniform"] == 5


# Baselines


def test_the_marginal_counts_each_place_for_itself_with_one_more_of_everything() -> None:
    train = np.zeros((2, 1, 2, 1), np.uint8)
    train[0, 0, 1, 0] = 1  # the first place is always 0, the second 0 or 1
    table = marginal(train, 2)
    assert table[0, 0, 0].tolist() == [0.75, 0.25]
    assert table[0, 1, 0].tolist() == [0.5, 0.5]
    frame = np.array([0, 1], np.uint8).reshape(1, 1, 2, 1)
    assert marginal_bits(frame, table) == pytest.approx((-math.log2(0.75) + 1) / 2)


def test_copying_the_last_frame_mixes_it_with_the_marginal() -> None:
    table = np.array([0.5, 0.5]).reshape(1, 1, 1, 2)
    same, first = np.array([True, True]), np.array([True, False])
    frames, last = one_pixel(1, 1), one_pixel(1, 0)
    # 0.8 + 0.2 * 0.5 where it is the last level, 0.2 * 0.5 where it is not
    wanted = -(math.log2(0.9) + math.log2(0.1)) / 2
    assert copy_last_bits(frames, last, same, table, 0.8) == pytest.approx(wanted)
    # the second has no frame before it
    wanted = -(math.log2(0.9) + math.log2(0.5)) / 2
    assert copy_last_bits(frames, last, first, table, 0.8) == pytest.approx(wanted)


def test_the_weight_of_the_last_frame_has_the_greatest_likelihood() -> None:
    table = np.array([0.5, 0.5]).reshape(1, 1, 1, 2)
    # same in 3 of 4: 3 log(w + (1 - w) / 2) + log((1 - w) / 2) is largest at w = 1 / 2
    frames, last = one_pixel(0, 0, 0, 1), one_pixel(0, 0, 0, 0)
    assert copy_weight(frames, last, table) == pytest.approx(0.5, abs=1e-6)


def test_png_bytes_are_those_of_the_file_and_of_its_data() -> None:
    frame = np.zeros((1, 8, 8, 1), np.uint8)
    file = io.BytesIO()
    Image.fromarray(frame[0, ..., 0]).save(file, "PNG", optimize=True)
    found = png_bytes(frame)
    assert found["png"] == len(file.getvalue())
    # signature 8, header 25, end 12, and 12 around the data
    assert found["png_data"] == found["png"] - 57
    assert png_bytes(np.zeros((1, 8, 8, 2), np.uint8)) == {}


def test_images_without_an_order_have_no_last_frame() -> None:
    levels = quantised(random_images(40), 5)
    images = ImageSet(name="x", bits=5, train=levels, held_out=levels, unseen=np.arange(4))
    assert baselines(images, 4)["copy_last"] is None


# A user's own


def write_pictures(folder: Path, images: Any) -> None:
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image.squeeze(-1) if image.shape[2] == 1 else image).save(
            folder / f"{number:03d}.png"
        )


def test_pictures_and_arrays_become_images_a_tenth_held_out(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", random_images(39, channels=3))
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "p" / "grey.png")
    train, held_out = read_pictures(tmp_path / "p")  # the grey one becomes a coloured one
    assert (train.shape, held_out.shape) == ((36, 8, 8, 3), (4, 8, 8, 3))
    assert np.array_equal(held_out, read_pictures(tmp_path / "p")[1])
    images = random_images(30, channels=3)
    np.savez(tmp_path / "a.npz", images=images, others=images, labels=np.arange(30))
    assert read_pictures(tmp_path / "a.npz")[0].shape == (27, 8, 8, 3)


# What cannot be read


def make_unreadable(path: Path, case: str) -> None:
    if case == "text":
        path.write_text("x")
    elif case == "pickled array":
        np.savez(path, images=np.array([{}], object))
    elif case == "no images":
        np.savez(path, labels=np.arange(3))
    elif case in ("CIFAR's pickles", "empty folder"):
        path.mkdir()
        if case != "empty folder":
            (path / "data_batch_1").write_bytes(b"cos\nsystem\n.")
    elif case != "nothing":
        write_pictures(path, random_images(3 if case == "few" else 20))
        if case == "two sizes":
            Image.fromarray(random_images(1, side=10)[0, ..., 0]).save(path / "z.png")
        elif case == "broken picture":
            (path / "z.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("name", "case", "error"),
    [
        ("x", "nothing", "got nothing there"),
        ("x", "text", "got a file that is no .npz"),
        ("x", "empty folder", "expected a folder with PNG or JPG files, got none"),
        ("x", "two sizes", "expected images of one size, got 8 x 8 .* and 10 x 10"),
        ("x", "broken picture", r"z\.png: expected a picture"),
        ("x", "few", "expected at least 20 images, got 3"),
        ("x", "CIFAR's pickles", "can run any code; save them as an .npz"),
        ("x.npz", "no images", "expected one uint8 array .*, got labels int64"),
        ("x.npz", "pickled array", "expected an .npz of plain arrays"),
        ("x.npz", "text", "expected an .npz of plain arrays"),
    ],
)
def test_a_path_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, case: str, error: str
) -> None:
    make_unreadable(tmp_path / name, case)
    with pytest.raises(MbrlError, match=error):
        read_pictures(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"size": 5}, "a multiple of 5, got 8 x 8"),
        ({"size": 16}, "a multiple of 16, got 8 x 8"),
        ({"bits": 0}, "expected 1 to 8 bits, got --bits 0"),
        ({"game": "pong"}, "got both"),
        ({"path": None}, "got neither"),
        ({"path": None, "game": "pongg"}, "bench flow: expected a game out of.*did you mean pong"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: str
) -> None:
    np.savez(tmp_path / "a.npz", images=random_images(30))
    with pytest.raises(MbrlError, match=error):
        load_images(Source(**{"path": tmp_path / "a.npz", **changes}))


def test_images_that_are_all_training_images_cannot_be_measured(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((30, 8, 8, 1), np.uint8))
    with pytest.raises(MbrlError, match="held-out images that are not training images"):
        load_images(Source(path=tmp_path / "a.npz"))
