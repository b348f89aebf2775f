"""Moving pictures of what a model saw, rebuilt and dreamed: frames in, one small file out.

Frames are (n, H, W, 3) uint8 everywhere. It knows nothing of models and games: turning their images
into RGB happens before.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frames = NDArray[np.uint8]

CONTEXT_END = (225, 60, 50)
_SEPARATOR = (96, 96, 96)
_PAPER = (24, 24, 27)
_INK = (235, 235, 235)
_TEXT_PX = 12
_GAP_PX = 2


def write_video(path: Path, frames: Frames, fps: float) -> Path:
    """Write an MP4 (H.264) that every browser plays.

    Args:
        path: ends in .mp4; its folder is made if missing.
        frames: (n, H, W, 3) uint8, n >= 1.
        fps: frames per second, > 0.

    Returns:
        The path. Odd sizes are padded by one row or column: the format wants even ones.

    Raises:
        OSError: the encoder stopped, for example because the disk is full.
    """
    import imageio_ffmpeg

    path.parent.mkdir(parents=True, exist_ok=True)
    odd = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    frames = np.pad(frames, odd, mode="edge")
    _, height, width, _ = frames.shape
    encoder = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}"]
    # yuv420p is what every browser decodes; faststart puts the index first, for playing at once
    target = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    done = subprocess.run(
        [*encoder, *source, "-i", "-", *target, str(path)],
        input=frames.tobytes(),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise OSError(f"cannot write {path}: ffmpeg says: {said}")
    return path


def dream_grid(
    real: Frames, reconstruction: Frames, dream: Frames, context: int, scale: int
) -> Frames:
    """The standard picture: rows "real", "reconstruction" and "dream", one column per sequence.

    Args:
        real: (B, T, H, W, 3) uint8, what happened.
        reconstruction: the same shape; the model's picture of each frame it has seen.
        dream: the same shape; `context` reconstructions, then frames imagined without seeing any.
        context: frames the dream has seen. From there on its row has a red border.
        scale: whole factor by which pixels are enlarged, without smoothing.

    Returns:
        (T, height, width, 3) uint8 with a label above each row.
    """
    rows = {
        "real": [_enlarge(clip, scale) for clip in real],
        "reconstruction": [_enlarge(clip, scale) for clip in reconstruction],
        f"dream (red: after {context} frames of context)": [
            _border(_enlarge(clip, scale), context, max(1, scale // 3)) for clip in dream
        ],
    }
    return np.concatenate([_label(_beside(clips), text) for text, clips in rows.items()], axis=1)


def _enlarge(frames: Frames, scale: int) -> Frames:
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


def _border(frames: Frames, first: int, width: int) -> Frames:
    """Frames with a border, `width` pixels wide, from frame `first` on."""
    bordered = frames.copy()
    for edge in (np.s_[:, :width], np.s_[:, -width:], np.s_[:, :, :width], np.s_[:, :, -width:]):
        bordered[first:][edge] = CONTEXT_END
    return bordered


def _label(frames: Frames, text: str) -> Frames:
    """Frames with a line of small text above, cut off at the right edge if they are narrow."""
    strip = Image.new("RGB", (frames.shape[2], _TEXT_PX + 4), _PAPER)
    draw = ImageDraw.Draw(strip)
    draw.text((3, 1), text, fill=_INK, font=ImageFont.load_default(_TEXT_PX))
    band = np.broadcast_to(np.asarray(strip), (len(frames), *np.asarray(strip).shape))
    return np.concatenate([band, frames], axis=1)


def _beside(clips: Sequence[Frames]) -> Frames:
    """Clips (n, H, W, 3) of one shape beside each other, with lines between them."""
    line = np.broadcast_to(np.array(_SEPARATOR, np.uint8), (*clips[0].shape[:2], _GAP_PX, 3))
    parts = [part for clip in clips for part in (line, clip)]
    return np.concatenate(parts[1:], axis=2)
