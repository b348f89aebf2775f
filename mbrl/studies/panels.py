"""Parts of figures and picture sheets that every study's report shares.

Pixels are never smoothed: enlarging is by whole factors. What is drawn is not known here.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Images = NDArray[np.uint8]


def beside(count: int, width: float = 3.5) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels beside each other."""
    figure = Figure(figsize=(width * max(count, 2), 3.6), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def legend_below(figure: Figure, axes: Axes) -> None:
    """One legend below all panels, each title once."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(reversed(labels), reversed(handles), strict=True))
    labels = [label for label in dict.fromkeys(labels) if label in once]
    columns = min(len(labels), max(2, int(figure.get_figwidth() // 2.5)))
    handles = [once[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def sheet(path: Path, rows: Mapping[str, Images], columns: Sequence[str], scale: int) -> Path:
    """Write rows of images as PNG, their names on the left and, if given, names above the columns.

    `rows` are (n, H, W, C) by name, `scale` is pixels per pixel.
    """
    font, gap = ImageFont.truetype(findfont("DejaVu Sans"), 15), 6
    count, height, width = next(iter(rows.values())).shape[:3]
    height, width = height * scale, width * scale
    left = 16 + max(int(font.getlength(line)) for name in rows for line in _lines(name))
    top = 28 if columns else gap
    size = (left + count * (width + gap), top + len(rows) * (height + gap))
    drawn = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(drawn)
    for column, name in enumerate(columns):
        middle = left + column * (width + gap) + width // 2
        pen.text((middle, top // 2), name, fill="#5a5e66", font=font, anchor="mm")
    for row, (name, images) in enumerate(rows.items()):
        y = top + row * (height + gap)
        text = "\n".join(_lines(name))
        pen.multiline_text((8, y + height // 2), text, fill="#1d1f23", font=font, anchor="lm")
        for column, image in enumerate(images):
            colour = np.broadcast_to(image, (*image.shape[:2], 3))
            large = colour.repeat(scale, 0).repeat(scale, 1)
            drawn.paste(Image.fromarray(large), (left + column * (width + gap), y))
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(path, optimize=True)
    return path


def _lines(name: str) -> list[str]:
    """A title broken at spaces, so that the names do not take half of the sheet."""
    return textwrap.wrap(name, 18, break_long_words=False, break_on_hyphens=False)
