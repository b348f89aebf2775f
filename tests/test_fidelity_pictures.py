"""Pictures of a study: sheets with every pixel as it was drawn, and the page that shows them."""

from pathlib import Path

import numpy as np
import pytest
from fidelity_trials import GAME, make_trial, write_trial
from PIL import Image

from mbrl.studies.fidelity.pictures import Pictures, sample_sheet
from mbrl.studies.fidelity.report import picture_sheets
from mbrl.studies.fidelity.study import STUDY

# Sheets


def some_pictures(level: int) -> Pictures:
    images = np.full((2, 4, 4, 1), level, np.uint8)
    images[0, 1, 2] = 255
    strips = np.stack([images, images])[:, :2]
    return Pictures(images, images, strips, strips, np.array([1, 5]))


def test_sheets_enlarge_every_pixel_and_smooth_none(tmp_path: Path) -> None:
    path = sample_sheet(tmp_path / "a.png", {"dark": some_pictures(10)})
    with Image.open(path) as image:
        pixels = np.asarray(image)
    white, dark = (pixels == 255).all(-1), (pixels == 10).all(-1)
    assert dark.sum() == 2 * (2 * 16 - 1) * 16  # two rows of two images, less the bright pixel
    rows, columns = np.nonzero(dark)
    corner = rows.min(), columns.min()
    assert white[corner[0] + 4 : corner[0] + 8, corner[1] + 8 : corner[1] + 12].all()


@pytest.mark.parametrize("variants", [False, True])
def test_each_arm_is_shown_by_its_first_seed_with_pictures(tmp_path: Path, variants: bool) -> None:
    shown = {"pixelcnn-1": 10, **({"pixelcnn_1-0": 20} if variants else {})}
    for name in ("pixelcnn-0", "deconv_mse-0", *shown):
        arm, _, seed = name.rpartition("-")
        write_trial(make_trial(tmp_path, arm=arm, seed=int(seed)), {"ball_recall": 1.0})
    for name, level in shown.items():
        (tmp_path / name).mkdir()
        some_pictures(level).write(tmp_path / name / "pictures.npz")
    sheets = picture_sheets(tmp_path, STUDY.aggregate(GAME.name, tmp_path / "results"))
    drawn = {path.stem: np.asarray(Image.open(path).convert("L")) for path, _ in sheets}
    extra = {"samples_variants", "dream_variants"} if variants else set()
    assert drawn.keys() == {"samples", "dream_1", *extra}
    for name, pixels in drawn.items():
        one = 20 if "variants" in name else 10
        assert (pixels == one).sum() > 100
        assert (pixels == 30 - one).sum() < 100
