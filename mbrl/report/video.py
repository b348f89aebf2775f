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


def write_video(path: Path | str, frames: Frames, fps: float, scale: int = 1) -> Path:
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

    path = Path(path)
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


def write_gif(path: Path | str, frames: Frames, fps: float, scale: int = 1) -> Path:
    """Write an endless GIF, for places that play no video.

    Args:
        path: ends in .gif; its folder is made if missing.
        frames: (n, H, W, 3) uint8, n >= 1.
        fps: frames per second, in (0, 50]: viewers slow faster ones down.
        scale: whole factor by which pixels are enlarged, without smoothing.

    Returns:
        The path. Colours are reduced to one palette of 256 for all frames.

    Raises:
        ValueError: the frames have another shape or type, or fps or scale is out of range.
    """
    path = Path(path)
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
    """Repeat every pixel `scale` times in both directions.

    Raises:
        ValueError: scale is not a whole number >= 1.
    """
    if not isinstance(scale, int | np.integer) or scale < 1:
        raise ValueError(f"expected a scale that is a whole number >= 1, got {scale!r}")
    if scale == 1:
        return frames
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


def label(frames: Frames, text: str) -> Frames:
    """Put a line of small text above the frames.

    Args:
        frames: (n, H, W, 3) uint8.
        text: cut off at the right edge if the frames are narrow.

    Returns:
        (n, H + 16, W, 3) uint8.
    """
    frames = _checked(frames)
    strip = Image.new("RGB", (frames.shape[2], _TEXT_PX + 4), _PAPER)
    draw = ImageDraw.Draw(strip)
    draw.text((3, 1), text, fill=_INK, font=ImageFont.load_default(_TEXT_PX))
    band = np.broadcast_to(np.asarray(strip), (len(frames), *np.asarray(strip).shape))
    return np.concatenate([band, frames], axis=1)


def frame_border(
    frames: Frames,
    colour: tuple[int, int, int] = CONTEXT_END,
    *,
    first: int = 0,
    last: int | None = None,
    width: int = 2,
) -> Frames:
    """Paint a border over the edge of frames `first` to `last`, both included.

    Args:
        frames: (n, H, W, 3) uint8.
        colour: RGB, 0 to 255.
        first: index of the first frame with a border; for a dream, where its context ends.
        last: index of the last one; None for the end.
        width: pixels.

    Returns:
        A copy of the same shape.
    """
    bordered = _checked(frames).copy()
    part = bordered[first : None if last is None else last + 1]
    for edge in (np.s_[:, :width], np.s_[:, -width:], np.s_[:, :, :width], np.s_[:, :, -width:]):
        part[edge] = colour
    return bordered


def grid(rows: Sequence[Sequence[Frames]], gap: int = 2) -> Frames:
    """Lay out equally long clips in rows and columns, with a thin line between them.

    Args:
        rows: clips (n, H, W, 3) uint8, all of one shape, as many in each row.
        gap: pixels between clips.

    Returns:
        (n, rows * H + gaps, columns * W + gaps, 3) uint8.

    Raises:
        ValueError: no clips, rows of different lengths, or clips of different shapes.
    """
    shapes = {_checked(clip).shape for row in rows for clip in row}
    lengths = {len(row) for row in rows}
    if len(shapes) != 1 or len(lengths) != 1:
        raise ValueError(
            f"expected rows of equal length with clips of one shape, got rows of {sorted(lengths)} "
            f"clips and shapes {sorted(shapes)}"
        )
    n, height, width, _ = next(iter(shapes))
    columns = next(iter(lengths))
    size = (len(rows) * (height + gap) - gap, columns * (width + gap) - gap)
    canvas = np.empty((n, *size, 3), dtype=np.uint8)
    canvas[:] = _SEPARATOR
    for i, row in enumerate(rows):
        for j, clip in enumerate(row):
            y, x = i * (height + gap), j * (width + gap)
            canvas[:, y : y + height, x : x + width] = clip
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
        (T, height, width, 3) uint8 with labels above each row.

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
    bordered = [
        frame_border(enlarge(clip, scale), first=context, width=max(1, scale // 3))
        for clip in dream
    ]
    rows = [
        ("real", [enlarge(clip, scale) for clip in real]),
        ("reconstruction", [enlarge(clip, scale) for clip in reconstruction]),
        (f"dream (red: after {context} frames of context)", bordered),
    ]
    return np.concatenate([label(grid([clips]), text) for text, clips in rows], axis=1)


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
