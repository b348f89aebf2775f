import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from mbrl.report.video import CONTEXT_END, dream_grid, write_video


def moving_square(n: int = 12, size: int = 15) -> np.ndarray:
    frames = np.zeros((n, size, size, 3), np.uint8)
    for i in range(n):
        frames[i, 4:8, i % 10 : i % 10 + 4] = (255, 200, 0)
    return frames


def test_mp4_has_every_frame_at_its_rate_and_shows_what_was_written(tmp_path: Path) -> None:
    frames = moving_square(size=61).repeat(2, 1).repeat(2, 2)[:, 1:]  # of 121 x 122
    path = write_video(tmp_path / "new" / "clip.mp4", frames, fps=10)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # a browser can start before the end is there
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo"]
    done = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    said = done.stderr.decode()
    assert "Video: h264" in said and "10 fps" in said
    seen = np.frombuffer(done.stdout, np.uint8).reshape(12, 122, 122, 3)  # an odd size is padded
    difference = np.abs(seen[:, :121].astype(int) - frames).mean()
    assert difference < 8  # the codec loses a little at the edges


def test_failed_encoder_is_an_error(tmp_path: Path) -> None:
    target = tmp_path / "taken.mp4"
    target.mkdir()
    with pytest.raises(OSError, match=r"cannot write .*taken\.mp4: ffmpeg says: "):
        write_video(target, moving_square(), fps=5)


def test_dream_grid_has_three_labelled_rows_and_a_border_where_the_context_ends() -> None:
    real = np.stack([moving_square(6, 10), moving_square(6, 10)[::-1]])
    clip = dream_grid(real, real // 2, real // 4, context=2, scale=2)
    label, height, width = 16, 20, 20
    assert clip.shape == (6, 3 * (height + label), 2 * width + 2, 3)
    rows = np.split(clip, 3, axis=1)
    for row, part in zip(rows, (1, 2, 4), strict=True):
        assert row[0, :label].max() > 200  # ink
        for sequence, left in zip(real, (0, width + 2), strict=True):
            inner = row[:, label + 1 : -1, left + 1 : left + width - 1]
            large = (sequence // part).repeat(2, 1).repeat(2, 2)
            np.testing.assert_array_equal(inner, large[:, 1:-1, 1:-1])
    corner = rows[2][:, -1, 0]
    assert (corner[:2] != CONTEXT_END).any(axis=1).all()
    assert (corner[2:] == CONTEXT_END).all()
