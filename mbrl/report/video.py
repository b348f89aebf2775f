"""Moving pictures of what a model saw, rebuilt and dreamed: frames in, one small file out.

Frames are (n, H, W, 3) uint8 everywhere. The functions that lay frames out return frames, so they
can be stacked; only `write_video` and `write_gif` touch the disk. It knows nothing of models and
games: turning their images into RGB happens before.
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


def write_video(path: Path, frames: Frames, fps: float, scale: int = 1) -> Path:
    """Write an MP4 (H.264) that every browser plays.

    Args:
        path: ends in .mp4; its folder is made if missing.
        frames: (n, H, W, 3) uint8, n >= 1.
        fps: frames per second, > 0.
        scale: whole factor by which pixels are enlarged, without smoothing.

    Returns:
        The path. Odd sizes are padded by one row or column: the format wants even ones.

    Raises:
        ValueError: the frames have another shape or type, or fps or scale is out of range.
        OSError: the encoder stopped, for example because the disk is full.
    """
    import imageio_ffmpeg

    frames = _even(enlarge(_checked(frames), scale))
    if fps <= 0:
        raise ValueError(f"expected fps > 0, got {fps}")
    path.parent.mkdir(parents=True, exist_ok=True)
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


def write_gif(path: Path, frames: Frames, fps: float, scale: int = 1) -> Path:
    """Write an endless GIF, for places that play no video; otherwise as `write_video`.

    `fps` is in (0, 50], as viewers slow faster ones down. Colours are reduced to one palette of 256
    for all frames.
    """
    if not 0 < fps <= 50:
        raise ValueError(f"expected fps in (0, 50], got {fps}")
    frames = enlarge(_checked(frames), scale)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One palette for all frames, so that nothing flickers; made from a sample of them.
    sample = frames[:: max(1, len(frames) // 16)]
    palette = Image.fromarray(sample.reshape(-1, frames.shape[2], 3)).quantize(256)
    images = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    images[0].save(
        path,
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / fps),
        loop=0,
        optimize=False,
    )
    return path


def enlarge(frames: Frames, scale: int) -> Frames:
    """Repeat every pixel `scale` times in both directions; ValueError if it is below 1."""
    if scale < 1:
        raise ValueError(f"expected a scale >= 1, got {scale!r}")
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


def label(frames: Frames, text: str) -> Frames:
    """Put a line of small text above the frames: (n, H, W, 3) to (n, H + 16, W, 3) uint8.

    The text is cut off at the right edge if the frames are narrow.
    """
    frames = _checked(frames)
    strip = Image.new("RGB", (frames.shape[2], _TEXT_PX + 4), _PAPER)
    draw = ImageDraw.Draw(strip)
    draw.text((3, 1), text, fill=_INK, font=ImageFont.load_default(_TEXT_PX))
    band = np.broadcast_to(np.asarray(strip), (len(frames), *np.asarray(strip).shape))
    return np.concatenate([band, frames], axis=1)


def frame_border(frames: Frames, first: int, width: int) -> Frames:
    """A copy of frames (n, H, W, 3) with a border, `width` pixels wide, from frame `first` on."""
    bordered = _checked(frames).copy()
    for edge in (np.s_[:, :width], np.s_[:, -width:], np.s_[:, :, :width], np.s_[:, :, -width:]):
        bordered[first:][edge] = CONTEXT_END
    return bordered


def beside(clips: Sequence[Frames], gap: int = 2) -> Frames:
    """Lay out clips (n, H, W, 3) of one shape beside each other, `gap` pixels between them.

    Raises:
        ValueError: no clips, or clips of different shapes.
    """
    shapes = {_checked(clip).shape for clip in clips}
    if len(shapes) != 1:
        raise ValueError(f"expected clips of one shape, got shapes {sorted(shapes)}")
    n, height, width, _ = next(iter(shapes))
    canvas = np.empty((n, height, len(clips) * (width + gap) - gap, 3), dtype=np.uint8)
    canvas[:] = _SEPARATOR
    for column, clip in enumerate(clips):
        left = column * (width + gap)
        canvas[:, :, left : left + width] = clip
    return canvas


def dream_grid(
    real: Frames, reconstruction: Frames, dream: Frames, context: int, scale: int = 1
) -> Frames:
    """The standard picture: rows "real", "reconstruction" and "dream", one column per sequence.

    Args:
        real: (B, T, H, W, 3) uint8, what happened.
        reconstruction: the same shape; the model's picture of each frame it has seen.
        dream: the same shape; `context` reconstructions, then frames imagined without seeing any.
        context: frames the dream has seen. From there on its row has a red border.
        scale: whole factor by which pixels are enlarged, before borders and labels are drawn.

    Returns:
        (T, height, width, 3) uint8 with a label above each row.

    Raises:
        ValueError: the three differ in shape, or context is not in [0, T].
    """
    if not real.shape == reconstruction.shape == dream.shape or real.ndim != 5:
        raise ValueError(
            "expected three arrays of one shape (B, T, H, W, 3), got "
            f"{real.shape}, {reconstruction.shape} and {dream.shape}"
        )
    if not 0 <= context <= real.shape[1]:
        raise ValueError(f"expected context in [0, {real.shape[1]}], got {context}")
    bordered = [frame_border(enlarge(clip, scale), context, max(1, scale // 3)) for clip in dream]
    rows = [
        ("real", [enlarge(clip, scale) for clip in real]),
        ("reconstruction", [enlarge(clip, scale) for clip in reconstruction]),
        (f"dream (red: after {context} frames of context)", bordered),
    ]
    return np.concatenate([label(beside(clips), text) for text, clips in rows], axis=1)


def _checked(frames: Frames) -> Frames:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(
            f"expected frames (n, H, W, 3) of uint8 with n >= 1, got {frames.shape} of "
            f"{frames.dtype}"
        )
    return frames


def _even(frames: Frames) -> Frames:
    pad = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    return np.pad(frames, pad, mode="edge")
