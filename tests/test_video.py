import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from mbrl.report import video


def moving_square(n: int = 12, size: int = 15) -> np.ndarray:
    frames = np.zeros((n, size, size, 3), np.uint8)
    for i in range(n):
        frames[i, 4:8, i % 10 : i % 10 + 4] = (255, 200, 0)
    return frames


def read_mp4(path: Path, width: int, height: int) -> tuple[str, np.ndarray]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo"]
    done = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)
    return done.stderr.decode(), frames


def test_mp4_has_every_frame_at_its_rate_and_shows_what_was_written(tmp_path: Path) -> None:
    frames = moving_square()
    path = video.write_video(tmp_path / "new" / "clip.mp4", frames, fps=10, scale=4)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # a browser can start before the end is there
    said, seen = read_mp4(path, 60, 60)
    assert "Video: h264" in said
    assert "10 fps" in said
    assert len(seen) == 12
    difference = np.abs(seen.astype(int) - video.enlarge(frames, 4)).mean()
    assert difference < 8  # the codec loses a little at the edges


def test_one_frame_of_odd_size_is_padded_to_an_even_one(tmp_path: Path) -> None:
    path = video.write_video(tmp_path / "odd.mp4", moving_square(1, 15), fps=5)
    assert len(read_mp4(path, 16, 16)[1]) == 1


def test_gif_repeats_for_ever_with_the_frames_as_given(tmp_path: Path) -> None:
    frames = moving_square(5)
    with Image.open(video.write_gif(tmp_path / "a.gif", frames, fps=10, scale=2)) as gif:
        assert gif.n_frames == 5
        assert gif.info["loop"] == 0
        assert gif.info["duration"] == 100
        gif.seek(3)
        shown = np.asarray(gif.convert("RGB"))
    np.testing.assert_array_equal(shown, video.enlarge(frames, 2)[3])


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 4, 4, 1), np.uint8),
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
    ],
    ids=["grey", "float", "empty", "one frame without its axis"],
)
def test_other_frames_are_refused_with_what_came(tmp_path: Path, frames: np.ndarray) -> None:
    for write in (video.write_video, video.write_gif):
        with pytest.raises(ValueError, match=r"expected frames \(n, H, W, 3\) of uint8"):
            write(tmp_path / "x", frames, fps=5)
    assert list(tmp_path.iterdir()) == []


def test_rate_and_scale_out_of_range_are_refused(tmp_path: Path) -> None:
    frames = moving_square(2)
    with pytest.raises(ValueError, match="fps > 0"):
        video.write_video(tmp_path / "x.mp4", frames, fps=0)
    with pytest.raises(ValueError, match=r"fps in \(0, 50\]"):
        video.write_gif(tmp_path / "x.gif", frames, fps=60)
    with pytest.raises(ValueError, match="scale >= 1, got 0"):
        video.write_video(tmp_path / "x.mp4", frames, fps=5, scale=0)


def test_failed_encoder_is_an_error(tmp_path: Path) -> None:
    target = tmp_path / "taken.mp4"
    target.mkdir()
    with pytest.raises(OSError, match=r"cannot write .*taken\.mp4: ffmpeg says: "):
        video.write_video(target, moving_square(), fps=5)


def test_enlarge_repeats_pixels() -> None:
    big = video.enlarge(np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3), 3)
    assert big.shape == (1, 6, 6, 3)
    assert (big[0, :3, 3:] == [3, 4, 5]).all()


def test_clips_lie_beside_each_other_with_a_line_between() -> None:
    clips = [np.full((2, 3, 4, 3), value, np.uint8) for value in (10, 20, 30)]
    canvas = video.beside(clips, gap=1)
    assert canvas.shape == (2, 3, 14, 3)
    assert [canvas[1, 0, left, 0] for left in (0, 5, 10)] == [10, 20, 30]
    assert (canvas[:, :, 4] == canvas[0, 0, 9]).all()


@pytest.mark.parametrize(
    "clips", [[], [moving_square(2), moving_square(3)]], ids=["nothing", "different lengths"]
)
def test_clips_that_do_not_fit_are_refused(clips: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="expected clips of one shape"):
        video.beside(clips)


def test_border_marks_the_chosen_frames_only() -> None:
    frames = moving_square(4, 10)
    marked = video.frame_border(frames, first=2, width=1)
    np.testing.assert_array_equal(marked[:2], frames[:2])
    assert (marked[2:, 0] == video.CONTEXT_END).all()
    assert (marked[2:, :, -1] == video.CONTEXT_END).all()
    np.testing.assert_array_equal(marked[2:, 1:-1, 1:-1], frames[2:, 1:-1, 1:-1])


def test_label_adds_a_band_with_text_above() -> None:
    frames = moving_square(2, 64)
    labelled = video.label(frames, "real")
    assert labelled.shape == (2, 80, 64, 3)
    np.testing.assert_array_equal(labelled[:, 16:], frames)
    assert labelled[0, :16].max() > 200  # ink


def test_dream_grid_has_three_rows_and_a_border_where_the_context_ends() -> None:
    real = np.stack([moving_square(6, 10)] * 2)
    clip = video.dream_grid(real, real, real, context=2, scale=2)
    assert clip.shape == (6, 3 * (20 + 16), 2 * 20 + 2, 3)
    dream_corner = clip[:, -1, 0]
    assert (dream_corner[:2] != video.CONTEXT_END).any(axis=1).all()
    assert (dream_corner[2:] == video.CONTEXT_END).all()


def test_dream_grid_refuses_rows_that_differ() -> None:
    real = np.stack([moving_square(6, 10)])
    with pytest.raises(ValueError, match="three arrays of one shape"):
        video.dream_grid(real, real[:, :5], real, context=2)
    with pytest.raises(ValueError, match=r"context in \[0, 6\], got 7"):
        video.dream_grid(real, real, real, context=7)
