"""Results of the fidelity study add up, and its tables, figures and pages show what there is."""

import io
import json
from pathlib import Path

import pytest
from fidelity_trials import GAME, TINY, make_trial, tiny, write_trial
from rich.console import Console

from mbrl.errors import ConfigError
from mbrl.studies.fidelity.arms import ARMS, SUPERVISED
from mbrl.studies.fidelity.figures import colour, cost_figure, drift_figure, marker
from mbrl.studies.fidelity.games import GAMES
from mbrl.studies.fidelity.report import write_report
from mbrl.studies.fidelity.results import aggregate, look_up, read_trials, summarise
from mbrl.studies.fidelity.tables import cell, summary_rows, tables, terminal_table
from mbrl.studies.fidelity.trials import refuse_others

ROOT = Path(__file__).resolve().parent.parent


def test_summary_has_mean_interval_and_every_seed() -> None:
    seeds = [
        {"ball_recall": 0.5, "drift": {"15": {"position_px": 2.0}}, "flat/name": 1.0},
        {"ball_recall": 0.7, "drift": {"15": {"position_px": None}}, "flat/name": 1.0},
        {"ball_recall": 0.9, "drift": {"15": {"position_px": 4.0}}, "flat/name": 1.0},
    ]
    summary = summarise(seeds)
    ball = summary["ball_recall"]
    assert ball["mean"] == pytest.approx(0.7)
    assert ball["per_seed"] == [0.5, 0.7, 0.9]
    low, high = ball["ci95"]
    assert 0.5 <= low < 0.7 < high <= 0.9
    # two seeds have the distance: a mean, no interval
    assert look_up(summary, "drift/15/position_px") == {
        "mean": 3.0,
        "ci95": None,
        "per_seed": [2.0, None, 4.0],
    }
    assert look_up(summary, "flat/name") == {"mean": 1.0, "ci95": [1.0, 1.0], "per_seed": [1.0] * 3}
    assert look_up(summary, "drift") is None and look_up(summary, "nothing/here") is None


def test_aggregate_reads_all_trials_that_are_there(tmp_path: Path) -> None:
    for seed, recall in ((1, 0.5), (0, 1.0)):
        write_trial(make_trial(tmp_path, seed=seed, minutes=30.0), {"ball_recall": recall})
    wm = make_trial(tmp_path, arm="world_models", minutes=15.0)
    write_trial(wm, {"ball_recall": None}, commit="abc, def-dirty")
    summary = aggregate(GAME.name, tmp_path / "results")
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
        f"--minutes {minutes} --steps 800 --quick"
        for arm, seeds, minutes in wanted
    )
    assert {"commit", "machine", "seeds"} <= summary.keys()
    assert json.loads((tmp_path / "results" / f"{GAME.name}.json").read_text()) == summary


def test_every_machine_of_every_trial_is_named(tmp_path: Path) -> None:
    one, other, third = ({"cpu": name, "cores": 2} for name in ("one", "other", "third"))
    write_trial(make_trial(tmp_path), {"ball_recall": 1.0}, machine=one)
    moved = {"machine": other, "other_machines": [one, third]}
    write_trial(make_trial(tmp_path, seed=1), {"ball_recall": 1.0}, **moved)
    summary = aggregate(GAME.name, tmp_path / "results")
    assert summary["machine"] == one and summary["other_machines"] == [other, third]


def test_tables_say_on_what_processor_an_arm_was_made_where_they_differ(tmp_path: Path) -> None:
    slow = {"cpu": "one", "vectors": "AVX2", "bfloat16": False}
    fast = {"cpu": "other", "vectors": "AVX512", "bfloat16": True}
    write_trial(make_trial(tmp_path), {"ball_recall": 1.0}, machine=slow)
    summary = aggregate(GAME.name, tmp_path / "results")
    assert summary_rows(summary).head == ["arm", "runs", "updates", "ball recall", "train, ms"]
    moved = {"machine": fast, "other_machines": [slow]}
    write_trial(make_trial(tmp_path, seed=1), {"ball_recall": 1.0}, **moved)
    before = make_trial(tmp_path, arm="deconv_mse")
    write_trial(before, {"ball_recall": 1.0}, machine={"cpu": "unknown"})
    rows = summary_rows(aggregate(GAME.name, tmp_path / "results"))
    assert rows.head[-1] == "processor"
    assert {row[0]: row[-1] for row in rows.rows} == {
        "PixelCNN": "AVX2; AVX512, bfloat16",
        "deconv, squared error": "not recorded",
    }


CARD = {"vectors": "AVX512", "card": "a card", "torch": "2"}


def test_times_on_a_card_are_left_out_and_its_name_stands_for_the_processor(tmp_path: Path) -> None:
    drawn = {"ball_recall": 1.0, "sample_ms_per_frame": 3.0}
    write_trial(make_trial(tmp_path, device="cuda"), drawn, machine=CARD)
    elsewhere = {"machine": {"vectors": "AVX2"}, "trained_here": False, "other_machines": [CARD]}
    write_trial(make_trial(tmp_path, arm="pixelcnn_1", device="cuda"), drawn, **elsewhere)
    write_trial(make_trial(tmp_path, arm="pixelcnn_past"), drawn, machine={"vectors": "AVX2"})
    summary = aggregate(GAME.name, tmp_path / "results")
    rows = summary_rows(summary)
    shown = {row[0]: dict(zip(rows.head, row, strict=True)) for row in rows.rows}
    card, moved, here = (
        shown[ARMS[arm].title] for arm in ("pixelcnn", "pixelcnn_1", "pixelcnn_past")
    )
    assert (card["train, ms"], card["sample, ms"], card["processor"]) == ("–", "–", "a card")
    assert (moved["train, ms"], moved["sample, ms"], moved["processor"]) == ("–", "3.0", "a card")
    assert (here["train, ms"], here["processor"]) == ("3.8", "AVX2")  # 0.3 s for 80 rows
    assert summary["measured_on"] == [{"vectors": "AVX2"}]
    of_card, of_cpu = summary["command"].split(" && ")
    assert "--arms pixelcnn,pixelcnn_1 " in of_card and of_card.endswith("--device cuda")
    assert "cuda" not in of_cpu


def test_runs_that_end_by_updates_are_counted_without_minutes(tmp_path: Path) -> None:
    write_trial(make_trial(tmp_path, updates=10), {"ball_recall": 1.0})
    summary = aggregate(GAME.name, tmp_path / "results")
    assert summary_rows(summary).rows[0][1:3] == ["1", "10"]
    assert summary["command"].endswith("--updates 10")
    beside = tmp_path / "fidelity_long"
    write_trial(make_trial(tmp_path, results=beside), {"ball_recall": 1.0})
    assert aggregate(GAME.name, beside)["command"].endswith(
        "--results results/fidelity_long --out runs/fidelity_long/synthetic_pong"
    )
    write_trial(make_trial(tmp_path, seed=1, updates=20), {"ball_recall": 1.0}, updates=12)
    stopped_by_time = summary_rows(aggregate(GAME.name, tmp_path / "results"))
    assert stopped_by_time.rows[0][1:3] == ["2 × 0.005", "10–12"]
    refuse_others([make_trial(tmp_path, updates=10)], GAME.env)
    with pytest.raises(ConfigError, match="updates: 10 became None"):
        refuse_others([make_trial(tmp_path)], GAME.env)


def test_a_game_without_memory_has_pictures_rates_and_drift_in_its_tables(tmp_path: Path) -> None:
    at = {"pixel_mse": 0.01, "still_mse": 0.02, "reward_sum_error": 0.5, "continue_error": 0.0}
    measures = {
        "reconstruction": {"psnr_db": 31.26, "mse": 0.001},
        "nats_per_frame": 3.0,
        "drift": {str(horizon): at for horizon in (1, 5, 15, 30, 50)},
    }
    trial = make_trial(tmp_path, game="car_racing")
    write_trial(trial, measures)
    summary = aggregate("car_racing", tmp_path / "results")
    shown = tables(summary)
    assert set(shown) == {"main", "drift", "dreams"}
    main = dict(zip(shown["main"][1].head, shown["main"][1].rows[0], strict=True))
    assert (main["PSNR, dB"], main["KL, nats"]) == ("31.3", "3.0")
    drift = dict(zip(shown["drift"][1].head, shown["drift"][1].rows[0], strict=True))
    beside = dict(zip(shown["dreams"][1].head, shown["dreams"][1].rows[0], strict=True))
    assert drift["squared error, 15"] == "0.0100"
    assert beside["squared error if it stood still, 15"] == "0.0200"
    page = write_report(trial.out, summary, read_trials("car_racing", trial.results)).read_text()
    assert "Beside drift" in page


def test_milliseconds_of_another_processor_are_not_drawn_beside_the_others(tmp_path: Path) -> None:
    here, there = {"vectors": "AVX2"}, {"vectors": "AVX512"}
    runs = [("world_models", 0, there), ("pixelcnn_stagewise", 0, there), ("deconv_mse", 0, here)]
    runs += [("pixelcnn", 0, here), ("pixelcnn", 1, there), ("pixelcnn_past", 0, here)]
    for arm, seed, machine in runs:
        spent = {"cpu_s": 1.0 + seed, "rows": 1000}
        trial = make_trial(tmp_path, arm=arm, seed=seed)
        write_trial(trial, {"ball_recall": 0.5}, machine=machine, **spent)
    moved = make_trial(tmp_path, arm="deconv_categorical")  # begun there, ended here
    write_trial(moved, {"ball_recall": 0.5}, machine=here, other_machines=[there])
    figure = cost_figure(aggregate(GAME.name, tmp_path / "results"))
    assert figure is not None
    drawn = {text.get_text() for text in figure.legends[0].get_texts()}
    alike = ("pixelcnn", "pixelcnn_past", "deconv_mse")
    assert drawn == {ARMS[arm].title for arm in alike}
    (mean,) = (line for line in figure.axes[0].lines if line.get_label() == ARMS["pixelcnn"].title)
    assert mean.get_xdata().tolist() == [1.0]  # the seed that was trained there is not in it


def test_arms_look_different_but_for_most_variants_of_the_pixelcnn() -> None:
    arms = [arm for arm in ARMS if colour(arm) != colour("pixelcnn_2")]
    others = {arm for arm in ARMS if not arm.startswith("pixelcnn")} - {SUPERVISED}
    named = {"pixelcnn", "pixelcnn_stagewise", "pixelcnn_past", "pixelcnn_past_long"}
    assert others | named == set(arms)
    assert len({colour(arm) for arm in arms}) == len({marker(arm) for arm in arms}) == len(arms)


def test_of_many_objects_tables_show_the_first_under_names_of_their_own(tmp_path: Path) -> None:
    names = [target.name for target in GAMES["freeway"].objects]
    measures = {f"{name}_recall": 0.5 for name in names}
    write_trial(make_trial(tmp_path, game="freeway"), measures)
    summary = aggregate("freeway", tmp_path / "results")
    assert set(measures) <= summary["arms"]["pixelcnn"].keys()
    assert len(names) == 11
    assert [head for head in summary_rows(summary).head if head.endswith("recall")] == [
        *("own chicken recall", "car 0 recall", "car 1 recall", "car 2 recall")
    ]
    heads = [column.header for column in terminal_table(summary).columns]
    assert heads[3:7] == ["own", "car 0", "car 1", "car 2"]


def test_the_table_of_a_terminal_breaks_no_number_at_80_columns(tmp_path: Path) -> None:
    measures = {
        **{f"{name}_recall": 0.25 for name in ("ball", "own_paddle", "other_paddle")},
        "probe_f1": {"mean": 0.625},
        "nats_per_frame": 12.3,
        "bits_per_frame": 104.2,
        "drift": {"15": {"ball_recall": 0.125, "position_px": 17.7}},
    }
    for seed, vectors in enumerate(("AVX2", "AVX512")):
        machine = {"cpu": vectors, "vectors": vectors, "bfloat16": False}
        write_trial(make_trial(tmp_path, seed=seed, minutes=30.0), measures, machine=machine)
    summary = aggregate(GAME.name, tmp_path / "results")
    assert summary_rows(summary).head[-1] == "processor"
    shown = io.StringIO()
    console = Console(width=80, file=shown)
    console.print(terminal_table(summary))
    row = next(line for line in shown.getvalue().splitlines() if "2 × 30" in line)
    numbers = "PixelCNN 2 × 30 10 0.25 0.25 0.25 0.62 12.3 104 0.12 17.7"
    assert row.split() == numbers.split()


def test_aggregate_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected results of trials, found none"):
        aggregate("pong", tmp_path)


def test_a_cell_says_how_sure_it_is() -> None:
    sure = {"mean": 0.975, "ci95": [0.96, 0.99], "per_seed": [0.96, 0.975, 0.99]}
    assert cell(sure, 2) == "0.97 (0.96–0.99)"
    assert cell({**sure, "ci95": None}, 1) == "1.0"
    assert cell({"mean": None, "ci95": None, "per_seed": [None]}, 2) == "–"
    assert cell(None, 2) == "–"


def test_tables_leave_out_what_no_arm_has(tmp_path: Path) -> None:
    write_trial(make_trial(tmp_path, minutes=30.0), {"ball_recall": 1.0, "nats_per_frame": 4.26})
    write_trial(make_trial(tmp_path, arm="pixelcnn_8"), {"ball_recall": 0.0})
    summary = aggregate(GAME.name, tmp_path / "results")
    rows = summary_rows(summary)
    assert rows.head == ["arm", "runs", "updates", "ball recall", "KL, nats", "train, ms"]
    assert rows.rows == [
        ["PixelCNN", "1 × 30", "10", "1.00", "4.3", "22500.0"],  # 1,800 s for 80 frames
        ["PixelCNN, 8 layers", "1 × 0.005", "10", "0.00", "–", "3.8"],  # a zero is a number
    ]
    assert set(tables(summary)) == {"main", "variants"}
    page = write_report(tmp_path, summary, read_trials(GAME.name, tmp_path / "results"))
    assert "Fewer than three seeds" in page.read_text()


def test_tables_name_the_updates_of_all_seeds(tmp_path: Path) -> None:
    for seed, updates in enumerate((9800, 10100, 9900)):
        write_trial(make_trial(tmp_path, seed=seed), {"ball_recall": 1.0}, updates=updates)
    summary = aggregate(GAME.name, tmp_path / "results")
    assert summary_rows(summary).rows[0][2] == "9,800–10,100"


def test_tables_have_endings_likeliest_codes_and_ageing(tmp_path: Path) -> None:
    at = {"ending_error": 0.25, "ending_frames": 7.0, "likeliest_recall": 0.5, "likeliest_px": 1.5}
    drift = {str(horizon): at for horizon in (15, 50)}
    write_trial(make_trial(tmp_path), {"drift": drift, "information": {"aged_bits": 3.2}})
    shown = tables(aggregate(GAME.name, tmp_path / "results"))
    dreams = dict(zip(shown["dreams"][1].head, shown["dreams"][1].rows[0], strict=True))
    assert dreams["error at an ending, 15"] == dreams["error at an ending, 50"] == "0.250"
    assert dreams["endings"] == "7" and dreams["px with likeliest codes, 15"] == "1.5"
    assert dreams["recall with likeliest codes, 15"] == "0.50"
    code = dict(zip(shown["code"][1].head, shown["code"][1].rows[0], strict=True))
    assert code["aged, bits"] == "3.2"


def test_only_a_world_models_training_has_a_cost(tmp_path: Path) -> None:
    for arm, overrides in (("pixelcnn", TINY), (SUPERVISED, ())):
        labels = {"probe_f1": {"mean": 0.8}}
        write_trial(make_trial(tmp_path, arm=arm, overrides=overrides), labels)
    arms = aggregate(GAME.name, tmp_path / "results")["arms"]
    assert arms["pixelcnn"]["train_ms_per_frame"]["mean"] == pytest.approx(300 / 80)
    assert "train_ms_per_frame" not in arms[SUPERVISED]


def test_tables_have_what_stands_beside_recall(tmp_path: Path) -> None:
    def scores(precision: float, chance: float) -> dict[str, float]:
        return {"precision": precision, "shuffled_recall": chance, "near": 1.0, "present": 1.0}

    measures = {
        "own_paddle_recall": 0.8,
        "ball_recall": 0.9,
        "position_px": 1.2,
        "objects": {"ball": scores(0.7, 0.1), "own_paddle": scores(0.6, 0.3)},
        "probes": {"z": {"f1": {"mean": 0.4}}, "zh": {"f1": {"mean": 0.5}}},
        "drift": {"15": {"ball_recall": 0.5, "ball_present": 0.95}},
    }
    write_trial(make_trial(tmp_path), measures)
    made = tables(aggregate(GAME.name, tmp_path / "results"))
    main = made["main"][1]
    assert dict(zip(main.head[3:], main.rows[0][3:], strict=True)) == {
        **{"ball recall": "0.90", "own paddle recall": "0.80"},
        **{"ball precision": "0.70", "own paddle precision": "0.60", "strongest, px": "1.2"},
        **{"ball recall after 15": "0.50", "ball present after 15": "0.95"},
        "train, ms": "3.8",
    }
    beside = made["objects"][1]
    assert beside.head[3:5] == ["ball recall by chance", "own paddle recall by chance"]
    assert beside.rows[0][3:5] == ["0.10", "0.30"]
    assert made["code"][1].head[3:] == ["F1 from z alone", "from [z, h]"]
    assert made["drift"][1].head[3:] == ["ball recall, 15", "present, 15"]


def test_drift_figure_shows_every_arm_main_ones_on_top(tmp_path: Path) -> None:
    measures = {"ball_recall": 1.0, "drift": {"1": {"ball_recall": 1.0}, "15": {"ball_recall": 0}}}
    for arm in ("pixelcnn", "pixelcnn_8", "deconv_mse"):
        write_trial(make_trial(tmp_path, arm=arm), measures)
    figure = drift_figure(aggregate(GAME.name, tmp_path / "results"))
    assert figure is not None
    lines = figure.axes[0].get_lines()
    assert [line.get_linewidth() for line in lines] == [0.9, 0.9, 2.2]
    [legend] = figure.legends
    titles = {text.get_text() for text in legend.get_texts()}
    assert titles == {"PixelCNN", "variants of the PixelCNN", ARMS["deconv_mse"].title}
