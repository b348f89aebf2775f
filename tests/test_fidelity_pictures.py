"""Pictures of a study: sheets with every pixel as it was drawn, and the page that shows them."""

from pathlib import Path

import numpy as np
import pytest
from docs_generator import load_generator
from fidelity_trials import GAME, make_trial, write_trial
from PIL import Image

from mbrl.studies.fidelity.pictures import Pictures, sample_sheet, strip_sheet
from mbrl.studies.fidelity.report import picture_sheets
from mbrl.studies.fidelity.study import STUDY

# Sheets


def some_pictures(level: int) -> Pictures:
    images = np.full((2, 4, 4, 1), level, np.uint8)
    images[0, 1, 2] = 255
    strips = np.stack([images, images])[:, :2]
    return Pictures(images, images, strips, strips, np.array([1, 5]))


def test_sheets_enlarge_every_pixel_and_smooth_none(tmp_path: Path) -> None:
    path = sample_sheet(tmp_path / "a.png", {"dark": some_pictures(10)}, scale=4)
    with Image.open(path) as image:
        pixels = np.asarray(image)
    white, dark = (pixels == 255).all(-1), (pixels == 10).all(-1)
    assert dark.sum() == 2 * (2 * 16 - 1) * 16  # two rows of two images, less the bright pixel
    rows, columns = np.nonzero(dark)
    corner = rows.min(), columns.min()
    assert white[corner[0] + 4 : corner[0] + 8, corner[1] + 8 : corner[1] + 12].all()


def test_strips_have_a_column_per_horizon(tmp_path: Path) -> None:
    arms = {"one": some_pictures(10), "another with a long title": some_pictures(20)}
    with Image.open(strip_sheet(tmp_path / "b.png", arms, 1, scale=4)) as image:
        pixels = np.asarray(image)
    assert (pixels == 20).all(-1).sum() == 2 * 16 * 16 - 16


def test_pictures_come_back_as_they_were_written(tmp_path: Path) -> None:
    pictures = some_pictures(7)
    pictures.write(tmp_path / "pictures.npz")
    again = Pictures.read(tmp_path / "pictures.npz")
    assert all(np.array_equal(vars(again)[name], value) for name, value in vars(pictures).items())


def test_an_arm_is_shown_by_its_first_seed_that_has_pictures(tmp_path: Path) -> None:
    for arm, seed in (("pixelcnn", 0), ("pixelcnn", 1), ("deconv_mse", 0)):
        write_trial(make_trial(tmp_path, arm=arm, seed=seed), {"ball_recall": 1.0})
    (tmp_path / "pixelcnn-1").mkdir()
    some_pictures(200).write(tmp_path / "pixelcnn-1" / "pictures.npz")
    sheets = picture_sheets(tmp_path, STUDY.aggregate(GAME.name, tmp_path / "results"))
    assert [path.name for path, _ in sheets] == ["samples.png", "dream_1.png", "dream_2.png"]
    assert (np.asarray(Image.open(sheets[0][0]).convert("L")) == 200).sum() > 100


def test_variants_have_samples_and_one_dream_of_their_own(tmp_path: Path) -> None:
    for arm, level in (("pixelcnn", 10), ("pixelcnn_1", 20)):
        write_trial(make_trial(tmp_path, arm=arm), {"ball_recall": 1.0})
        (tmp_path / f"{arm}-0").mkdir()
        some_pictures(level).write(tmp_path / f"{arm}-0" / "pictures.npz")
    sheets = picture_sheets(tmp_path, STUDY.aggregate(GAME.name, tmp_path / "results"))
    drawn = {path.stem: np.asarray(Image.open(path).convert("L")) for path, _ in sheets}
    assert list(drawn) == ["samples", "samples_variants", "dream_1", "dream_2", "dream_variants"]
    for name, pixels in drawn.items():
        one = 20 if "variants" in name else 10
        assert (pixels == one).sum() > 100
        assert (pixels == 30 - one).sum() < 100


# The page


def test_page_takes_tables_and_pictures_from_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = load_generator()
    write_trial(make_trial(tmp_path, minutes=30.0), {"ball_recall": 0.5})
    STUDY.aggregate(GAME.name, tmp_path / "results")
    monkeypatch.setattr(generate, "FIDELITY_RESULTS", tmp_path / "results")
    monkeypatch.setattr(generate, "PICTURES", tmp_path / "docs")
    study_folder = tmp_path / GAME.name
    sample_sheet(study_folder / "figures" / "samples.png", {"a": some_pictures(3)})
    generate.copy_pictures(study_folder)
    parts = ("main", "variants", "origin", "pictures")
    page = "before\n" + "".join(
        f"<!-- fidelity {GAME.name} {part} -->\n<!-- end -->\n" for part in parts
    )
    made = generate.fidelity(page)
    assert made.startswith("before\n<!-- fidelity synthetic_pong main -->\n| arm | runs |")
    assert "| PixelCNN | 1 × 30 | 10 | 0.50 |" in made
    assert "None recorded yet." in made  # there are no variants
    assert "commit `abc`; 2 cores, a processor" in made
    assert "](fidelity/synthetic_pong_samples.png)" in made
    assert generate.fidelity(made) == made


def test_page_takes_a_study_of_another_kind_from_its_own_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = load_generator()
    for folder, recall in (("fidelity", 0.5), ("fidelity_long", 0.75)):
        write_trial(make_trial(tmp_path, results=tmp_path / folder), {"ball_recall": recall})
        STUDY.aggregate(GAME.name, tmp_path / folder)
    monkeypatch.setattr(generate, "FIDELITY_RESULTS", tmp_path / "fidelity")
    monkeypatch.setattr(generate, "PICTURES", tmp_path / "docs")
    study_folder = tmp_path / "runs" / "fidelity_long" / GAME.name
    sample_sheet(study_folder / "figures" / "samples.png", {"a": some_pictures(3)})
    generate.copy_pictures(study_folder)
    page = "".join(
        f"<!-- fidelity {name} {part} -->\n<!-- end -->\n"
        for name in (GAME.name, f"long/{GAME.name}")
        for part in ("main", "pictures")
    )
    ours, theirs = generate.fidelity(page).split(f"<!-- fidelity long/{GAME.name} main -->")
    assert "| 0.50 |" in ours and "No pictures" in ours
    assert "| 0.75 |" in theirs and "](fidelity/long_synthetic_pong_samples.png)" in theirs


def test_page_without_parts_or_with_an_unknown_one_is_refused(tmp_path: Path) -> None:
    generate = load_generator()
    with pytest.raises(ValueError, match="found none"):
        generate.fidelity("nothing here")
    with pytest.raises(ValueError, match="expected a part out of main, variants"):
        generate.fidelity("<!-- fidelity pong mains -->\n<!-- end -->\n")
    with pytest.raises(FileNotFoundError, match="expected a study's folder"):
        generate.copy_pictures(tmp_path)
