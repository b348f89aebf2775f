"""Results of the fidelity study add up, and its tables, figures and pages show what there is."""

import json
from pathlib import Path
from typing import Any

import pytest
from fidelity_trials import GAME, make_trial, tiny, write_trial

from mbrl.studies.fidelity.arms import ARMS
from mbrl.studies.fidelity.report import write_report
from mbrl.studies.fidelity.study import STUDY
from mbrl.studies.fidelity.tables import columns_of, tables
from mbrl.studies.fidelity.trial import Trial
from mbrl.studies.results import read_trials
from mbrl.studies.tables import cell, summary_rows

LEADING = ("arm", "runs", "updates")


def shown(folder: Path) -> dict[str, dict[str, str]]:
    """Cells of the summary by arm and heading."""
    summary = STUDY.aggregate(GAME.name, folder / "results")
    rows = summary_rows(summary, columns_of(summary))
    return {row[0]: dict(zip(rows.head, row, strict=True)) for row in rows.rows}


def test_aggregate_reads_all_trials_that_are_there(tmp_path: Path) -> None:
    for seed, recall in ((1, 0.5), (0, 1.0)):
        write_trial(make_trial(tmp_path, seed=seed, minutes=30.0), {"ball_recall": recall})
    wm = make_trial(tmp_path, arm="world_models", minutes=15.0)
    write_trial(wm, {"ball_recall": None}, commit="abc, def-dirty")
    summary = STUDY.aggregate(GAME.name, tmp_path / "results")
    assert list(summary["arms"]) == ["world_models", "pixelcnn"]  # the order of ARMS
    assert summary["arms"]["pixelcnn"]["ball_recall"]["per_seed"] == [1.0, 0.5]
    assert summary["arms"]["world_models"]["ball_recall"]["mean"] is None
    assert summary["runs"]["pixelcnn"]["seeds"] == [0, 1]
    assert summary["commit"] == "abc, def-dirty"
    overrides = {
        arm: " ".join(f"'{one}'" if " " in one or "[" in one else one for one in tiny(arm))
        for arm in summary["arms"]
    }
    wanted = [("world_models", 1, 15), ("pixelcnn", 2, 30)]
    assert summary["command"] == " && ".join(
        f"mbrl bench fidelity synthetic_pong {overrides[arm]} --arms {arm} --seeds {seeds} "
        f"--minutes {minutes} --quick --steps 800"
        for arm, seeds, minutes in wanted
    )
    assert {"commit", "machine", "seeds"} <= summary.keys()
    assert json.loads((tmp_path / "results" / f"{GAME.name}.json").read_text()) == summary


def test_tables_say_on_what_processor_an_arm_was_made_where_they_differ(tmp_path: Path) -> None:
    slow, fast = {"vectors": "AVX2", "bfloat16": False}, {"vectors": "AVX512", "bfloat16": True}
    write_trial(make_trial(tmp_path), {"ball_recall": 1.0}, machine=slow)
    assert shown(tmp_path)["PixelCNN"].keys() == {*LEADING, "ball recall", "train, ms"}
    moved = {"machine": fast, "other_machines": [slow]}
    write_trial(make_trial(tmp_path, seed=1), {"ball_recall": 1.0}, **moved)
    summary = STUDY.aggregate(GAME.name, tmp_path / "results")
    assert (summary["machine"], summary["other_machines"]) == (slow, [fast])
    before = make_trial(tmp_path, arm="deconv_mse")
    write_trial(before, {"ball_recall": 1.0}, machine={"cpu": "unknown"})
    assert {arm: row["processor"] for arm, row in shown(tmp_path).items()} == {
        "PixelCNN": "AVX2; AVX512, bfloat16",
        "deconv, squared error": "not recorded",
    }


def test_times_on_a_gpu_are_left_out_and_its_name_stands_for_the_processor(tmp_path: Path) -> None:
    drawn, gpu = {"ball_recall": 1.0, "sample_ms_per_frame": 3.0}, {"card": "a GPU", "torch": "2"}
    write_trial(make_trial(tmp_path, device="cuda"), drawn, machine=gpu)
    elsewhere = {"machine": {"vectors": "AVX2"}, "trained_here": False, "other_machines": [gpu]}
    write_trial(make_trial(tmp_path, arm="pixelcnn_1", device="cuda"), drawn, **elsewhere)
    write_trial(make_trial(tmp_path, arm="pixelcnn_past"), drawn, machine={"vectors": "AVX2"})
    assert {
        arm: (row["train, ms"], row["sample, ms"], row["processor"])
        for arm, row in shown(tmp_path).items()
    } == {
        "PixelCNN": ("–", "–", "a GPU"),
        ARMS["pixelcnn_1"].title: ("–", "3.0", "a GPU"),
        "PixelCNN, past subtracted": ("3.8", "3.0", "AVX2"),  # 0.3 s for 80 rows
    }
    summary = STUDY.aggregate(GAME.name, tmp_path / "results")
    assert summary["measured_on"] == [{"vectors": "AVX2"}]
    of_gpu, of_cpu = summary["command"].split(" && ")
    assert "--arms pixelcnn,pixelcnn_1 " in of_gpu and "--device cuda" in of_gpu
    assert "cuda" not in of_cpu


def test_runs_are_counted_with_minutes_unless_updates_ended_all_of_them(tmp_path: Path) -> None:
    write_trial(make_trial(tmp_path, updates=10), {"ball_recall": 1.0})
    summary = STUDY.aggregate(GAME.name, tmp_path / "results")
    assert summary_rows(summary, []).rows == [["PixelCNN", "1", "10"]]
    assert "--updates 10" in summary["command"]
    write_trial(make_trial(tmp_path, seed=1, updates=20), {"ball_recall": 1.0}, updates=12)
    summary = STUDY.aggregate(GAME.name, tmp_path / "results")
    assert summary_rows(summary, []).rows == [["PixelCNN", "2 × 0.005", "10–12"]]


SCORES = {"precision": 0.7, "shuffled_recall": 0.1, "near": 1.0, "present": 1.0}
STILL = {"pixel_mse": 0.01, "still_mse": 0.02, "reward_sum_error": 0.5, "continue_error": 0.0}
ENDING = {"ending_error": 0.25, "ending_frames": 7.0, "likeliest_recall": 0.5, "likeliest_px": 1.5}


@pytest.mark.parametrize(
    ("game", "measures", "cells"),
    [
        (  # what stands beside recall, the ball first
            GAME.name,
            {
                "own_paddle_recall": 0.8,
                "ball_recall": 0.9,
                "position_px": 1.2,
                "objects": {"ball": SCORES, "own_paddle": {**SCORES, "shuffled_recall": 0.3}},
                "probes": {"z": {"f1": {"mean": 0.4}}, "zh": {"f1": {"mean": 0.5}}},
                "information": {"aged_bits": 3.2},
                "drift": {"15": {"ball_recall": 0.5, "ball_present": 0.95, **ENDING}},
            },
            {
                "main": {
                    **{"ball recall": "0.90", "own paddle recall": "0.80"},
                    **{"ball precision": "0.70", "own paddle precision": "0.70"},
                    **{"strongest, px": "1.2", "ball recall after 15": "0.50"},
                    **{"ball present after 15": "0.95", "train, ms": "3.8"},
                },
                "objects": {
                    **{"ball recall by chance": "0.10", "own paddle recall by chance": "0.30"},
                    **{"ball near": "1.00", "own paddle near": "1.00"},
                    **{"ball present": "1.00", "own paddle present": "1.00"},
                },
                "code": {"F1 from z alone": "0.40", "from [z, h]": "0.50", "aged, bits": "3.2"},
                "drift": {"ball recall, 15": "0.50", "present, 15": "0.95"},
                "dreams": {
                    **{"recall with modes, 15": "0.50"},
                    **{"px with modes, 15": "1.5", "error at an ending, 15": "0.250"},
                    "endings": "7",
                },
            },
        ),
        (  # a game without memory has pictures, rates and drift
            "car_racing",
            {
                "reconstruction": {"psnr_db": 31.26, "mse": 0.001},
                "nats_per_frame": 3.0,
                "drift": {"15": STILL},
            },
            {
                "main": {"KL, nats": "3.0", "PSNR, dB": "31.3", "train, ms": "3.8"},
                "drift": {"squared error, 15": "0.0100"},
                "dreams": {
                    "squared error if it stood still, 15": "0.0200",
                    "error of summed reward, 15": "0.500",
                    "error of going on, 15": "0.000",
                },
            },
        ),
    ],
)
def test_tables_show_what_was_measured_and_nothing_else(
    game: str, measures: dict[str, Any], cells: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    write_trial(make_trial(tmp_path, game=game), measures)
    made = tables(STUDY.aggregate(game, tmp_path / "results"))
    assert made.keys() == cells.keys()
    for name, (_, rows) in made.items():
        assert dict(zip(rows.head[3:], rows.rows[0][3:], strict=True)) == cells[name]
        assert rows.head[3:] == list(cells[name])


def test_tables_leave_out_what_no_arm_has(tmp_path: Path) -> None:
    write_trial(make_trial(tmp_path, minutes=30.0), {"ball_recall": 1.0, "nats_per_frame": 4.26})
    write_trial(make_trial(tmp_path, arm="pixelcnn_8"), {"ball_recall": 0.0})
    summary = STUDY.aggregate(GAME.name, tmp_path / "results")
    rows = summary_rows(summary, columns_of(summary))
    assert rows.head == [*LEADING, "ball recall", "KL, nats", "train, ms"]
    assert rows.rows == [
        ["PixelCNN", "1 × 30", "10", "1.00", "4.3", "22500.0"],  # 1,800 s for 80 frames
        ["PixelCNN, 8 layers", "1 × 0.005", "10", "0.00", "–", "3.8"],  # a zero is a number
    ]
    assert set(tables(summary)) == {"main", "variants"}
    page = write_report(tmp_path, summary, read_trials(Trial, GAME.name, tmp_path / "results"))
    assert "Fewer than three seeds" in page.read_text()


def test_a_cell_says_how_sure_it_is() -> None:
    sure = {"mean": 0.975, "ci95": [0.96, 0.99], "per_seed": [0.96, 0.975, 0.99]}
    assert cell(sure, 2) == "0.97 (0.96–0.99)"
    assert cell({**sure, "ci95": None}, 1) == "1.0"
    assert cell({"mean": None, "ci95": None, "per_seed": [None]}, 2) == "–"
    assert cell(None, 2) == "–"
