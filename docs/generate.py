"""Make the parts of the documentation that follow from code and results, so nobody types them.

    python docs/generate.py             docs/configuration.md, and the tables in README.md,
                                        docs/fidelity.md and docs/flows.md
    python docs/generate.py --check     change nothing; exit code 1 if one of them is out of date
    python docs/generate.py --gif RUN   docs/dream.gif, from the newest dream video of a run folder
    python docs/generate.py --fidelity STUDY
                                        docs/fidelity/*.png, from the folder of a fidelity study
    python docs/generate.py --flows STUDY
                                        docs/flows/*.png, from the folder of a flow study

In: the pydantic models of `mbrl.config.schema`, `configs/`, and what `mbrl compare` and `mbrl
bench` left
in `results/`. Out: Markdown. A number that is in no results file is not printed.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import numpy as np  # noqa: E402
import settings_page  # noqa: E402
from settings_page import markdown_table  # noqa: E402

README, CONFIGURATION = ROOT / "README.md", ROOT / "docs" / "configuration.md"
FIDELITY, PICTURES = ROOT / "docs" / "fidelity.md", ROOT / "docs" / "fidelity"
FIDELITY_RESULTS = ROOT / "results" / "fidelity"
FLOWS, FLOW_PICTURES = ROOT / "docs" / "flows.md", ROOT / "docs" / "flows"
FLOW_RESULTS = ROOT / "results" / "flows"
RESULTS = ROOT / "results" / "minatar" / "breakout.json"
GIF = ROOT / "docs" / "dream.gif"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

# Results


def results_table(result: Mapping[str, Any]) -> str:
    """What `mbrl compare` found, as Markdown.

    Args:
        result: the `result.json` of a comparison.
    """
    rows = []
    for name, agent in result["agents"].items():
        returns = agent["returns"]
        low, high = agent["ci95"] or (0.0, 0.0)
        times = [seed["wall_time_s"] for seed in agent.get("seeds", {}).values()]
        rows.append(
            [
                name,
                f"{agent['iqm']:.2f}",
                f"{low:.2f} to {high:.2f}" if len(returns) > 1 else "one seed",
                ", ".join(f"{value:.2f}" for value in returns),
                f"{np.mean(times) / 60:.1f} min" if times else "–",
            ]
        )
    first = next(iter(result["agents"]))
    episodes = {
        int(seed["final"]["episodes"])
        for agent in result["agents"].values()
        for seed in agent.get("seeds", {}).values()
    }
    each = f", {' or '.join(map(str, sorted(episodes)))} episodes each" if episodes else ""
    caption = (
        f"`{result['env_id']}` after {result['env_steps']:,} real environment steps; mean return "
        f"of the last evaluation{each}. IQM is the interquartile mean over seeds."
    )
    head = ["agent", "IQM return", "95 % interval", "return of each seed", "time of a run"]
    parts = [caption, markdown_table(head, rows).rstrip("\n")]
    ratio = _ratio_sentence(result.get("steps_ratio"), first)
    if ratio:
        parts.append(ratio)
    return "\n\n".join([*parts, _origin(result)])


def _ratio_sentence(ratio: Mapping[str, Any] | None, first: str) -> str:
    if not ratio:
        return ""
    score = f"a mean return of {ratio['threshold']:.2f}, where `{ratio['against']}` ends"
    if ratio["value"] is None:
        return f"`{first}` did not reach {score}."
    least = "at least " if ratio.get("at_least") else ""
    interval = ratio.get("ci95")
    between = f" (95 % interval {interval[0]:.1f} to {interval[1]:.1f})" if interval else ""
    return (
        f"To reach {score}, `{ratio['against']}` needs {least}{ratio['value']:.1f} times as many "
        f"environment steps as `{first}`{between}."
    )


def _origin(result: Mapping[str, Any], path: Path = RESULTS, page: Path = README) -> str:
    """Command, commit and machine of a result, and where its numbers are, seen from a page."""
    machines = [result.get("machine") or {}, *result.get("other_machines", [])]
    parts = [
        ", ".join(f"`{one}`" for one in (result.get("command") or "").split(" && ") if one),
        f"commit {_commits(result['commit'])}" if result.get("commit") else "",
        " and, of another kind, ".join(filter(None, map(_machine, machines))),
        " and ".join(f"measured on {_machine(one)}" for one in result.get("measured_on", [])),
        f"[numbers of every seed]({Path(os.path.relpath(path, page.parent)).as_posix()})",
    ]  # fmt: skip
    return "From " + "; ".join(part for part in parts if part) + "."


def _machine(machine: Mapping[str, Any]) -> str:
    """A machine in a few words, as far as it is known."""
    cores = [f"{machine['cores']} cores"] if machine.get("cores") else []
    named = [machine[name] for name in ("card", "cpu", "vectors") if machine.get(name)]
    return ", ".join([*cores, *named])


def readme(text: str) -> str:
    """README.md with its results table made anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md: expected the marks {BEGIN} and {END}, found one at most")
    table = "No results are recorded in this checkout yet."
    if RESULTS.exists():
        table = results_table(json.loads(RESULTS.read_text(encoding="utf-8")))
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _commits(text: str) -> str:
    """One or several commits, shortened, with a mark on those that were not clean."""
    short = [f"`{one[:12]}{'-dirty' * one.endswith('-dirty')}`" for one in text.split(", ")]
    return ", ".join(dict.fromkeys(short))


# The studies of the fidelity of decoders and of flows

_PART = re.compile(r"(<!-- (?:fidelity|flows) ([\w/]+) (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_CAPTIONS = {
    "samples": "Free-running samples of held-out frames, by arm.",
    "samples_variants": "Free-running samples of held-out frames, by variant.",
    "dream_1": "A dream: 16 real frames, then only the real actions.",
    "dream_2": "Another.",
    "dream_3": "Another.",
    "dream_variants": "The first of these dreams, by variant.",
    "drift": "Dreams by horizon; thin lines are seeds.",
    "cost": "Fidelity against the cost of training; small marks are seeds. Only runs of one "
    "processor are shown, and that was not always as fast: by that alone seeds of an arm differ.",
    "learning": "Training over its minutes; every seed.",
    "field": "By the number of layers; one seed.",
}


_FLOW_CAPTIONS = {
    "samples": "Samples at several temperatures below real held-out images, by arm.",
    "interpolation": "From one held-out image to another: pixels cross-faded, and by arm.",
    "learning": "Held-out images while training; every seed.",
    "memory": "Kept for the backward pass of one batch, by steps per scale.",
}


def fidelity(text: str) -> str:
    """docs/fidelity.md with its tables and pictures made anew.

    A part is `<!-- fidelity GAME PART --> ... <!-- end -->`, PART being a table's name (see
    `studies.fidelity.tables.tables`), `origin` or `pictures`. `long/pong` is the game of a study
    whose
    results are in `results/fidelity_long` and whose pictures are named `long_pong_*`.

    Raises:
        ValueError: the page has no parts, or one that nothing is known of.
    """
    return _with_parts(text, "fidelity", fidelity_part)


def flows(text: str) -> str:
    """docs/flows.md likewise, with parts `<!-- flows IMAGES PART -->`.

    Raises:
        ValueError: the page has no parts, or one that nothing is known of.
    """
    return _with_parts(text, "flows", flows_part)


def _with_parts(text: str, study: str, made: Callable[[str, str], str]) -> str:
    if not _PART.search(text):
        raise ValueError(f"docs/{study}.md: expected parts <!-- {study} GAME PART -->, found none")
    return _PART.sub(lambda part: f"{part[1]}{made(part[2], part[3])}\n{part[5]}", text)


def fidelity_part(game: str, part: str) -> str:
    """One generated part of docs/fidelity.md."""
    from mbrl.studies.fidelity.tables import TABLES, tables

    if part == "pictures":
        return _links(PICTURES, "fidelity", game.replace("/", "_"), _CAPTIONS)
    study, _, game = game.rpartition("/")
    results = FIDELITY_RESULTS.with_name(f"fidelity_{study}") if study else FIDELITY_RESULTS
    return _table(FIDELITY, results / f"{game}.json", part, TABLES, tables)


def flows_part(images: str, part: str) -> str:
    """One generated part of docs/flows.md."""
    from mbrl.studies.flows.tables import TABLES, tables

    if part == "pictures":
        return _links(FLOW_PICTURES, "flows", images, _FLOW_CAPTIONS)
    return _table(FLOWS, FLOW_RESULTS / f"{images}.json", part, TABLES, tables)


def _links(folder: Path, study: str, name: str, captions: Mapping[str, str]) -> str:
    """Pictures of a study with their captions."""
    links = [
        f"![{captions[one]}]({study}/{name}_{one}.png)\n\n*{captions[one]}*"
        for one in captions
        if (folder / f"{name}_{one}.png").exists()
    ]
    return "\n\n".join(links) or "No pictures are recorded in this checkout yet."


def _table(
    page: Path, path: Path, part: str, known: Sequence[str], tables: Callable[[Any], Any]
) -> str:
    """A table of a study's summary, or where its numbers are from."""
    if part != "origin" and part not in known:
        names = ", ".join([*known, "origin", "pictures"])
        raise ValueError(f"docs/{page.name}: expected a part out of {names}, got {part}")
    if not path.exists():
        return "No results are recorded in this checkout yet."
    summary = json.loads(path.read_text(encoding="utf-8"))
    if part == "origin":
        return _origin(summary, path, page)
    found = tables(summary).get(part)
    if not found:
        return "None recorded yet."
    return markdown_table(found[1].head, found[1].rows).rstrip("\n")


def copy_pictures(study: Path, folder: Path | None = None) -> list[Path]:
    """Take the figures of a study's folder into a folder of docs (fidelity), named by its game.

    Those of `runs/fidelity_long/pong` are named `long_pong_*`.

    Raises:
        FileNotFoundError: the folder holds none.
    """
    figures = sorted((study / "figures").glob("*.png"))
    if not figures:
        raise FileNotFoundError(f"{study}: expected a study's folder with figures/*.png")
    folder = folder or PICTURES
    folder.mkdir(exist_ok=True)
    name, parent = study.resolve().name, study.resolve().parent.name
    if parent.startswith("fidelity_"):
        name = f"{parent.removeprefix('fidelity_')}_{name}"
    targets = [folder / f"{name}_{figure.name}" for figure in figures]
    for figure, target in zip(figures, targets, strict=True):
        shutil.copyfile(figure, target)
    return targets


# Files


def pages() -> dict[Path, str]:
    """Every generated file and what should be in it."""
    return {
        CONFIGURATION: settings_page.configuration(),
        README: readme(README.read_text(encoding="utf-8")),
        FIDELITY: fidelity(FIDELITY.read_text(encoding="utf-8")),
        FLOWS: flows(FLOWS.read_text(encoding="utf-8")),
    }


def stale() -> list[str]:
    """Names of generated files that are not what they should be."""
    return [
        path.relative_to(ROOT).as_posix()
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def newest_video(run: Path) -> Path:
    """The dream video of the most steps in a run folder.

    Raises:
        FileNotFoundError: there is none.
    """
    videos = sorted(run.glob("videos/dream-*.mp4"))
    if not videos:
        raise FileNotFoundError(f"{run}: expected a run folder with videos/dream-*.mp4, found none")
    return videos[-1]


def write_gif(video: Path, target: Path = GIF) -> Path:
    """Turn a dream video into a GIF of the same size and speed.

    Args:
        video: from `newest_video`.
        target: the GIF.
    """
    import imageio_ffmpeg

    from mbrl.report import video as videos

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(video), "-f", "rawvideo"]
    done = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    about = re.search(r"Video: .*?, (\d+)x(\d+)\b.*? ([\d.]+) fps", done.stderr.decode())
    if about is None:
        raise ValueError(f"{video}: expected ffmpeg to name size and speed, got neither")
    width, height, fps = int(about[1]), int(about[2]), float(about[3])
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)
    # MP4 leaves noise in flat areas that a GIF would have to spell out: coarser colours hide it
    flat = (np.round(frames.astype(np.float32) / 16) * 16).clip(0, 255).astype(np.uint8)
    return videos.write_gif(target, flat, fps)


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="only say what is out of date")
    parser.add_argument("--gif", type=Path, metavar="RUN", help="make docs/dream.gif of a run")
    parser.add_argument("--fidelity", type=Path, metavar="STUDY", help="make docs/fidelity/*.png")
    parser.add_argument("--flows", type=Path, metavar="STUDY", help="make docs/flows/*.png")
    options = parser.parse_args()
    if options.gif:
        path = write_gif(newest_video(options.gif))
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")
        return 0
    for study, folder in ((options.fidelity, PICTURES), (options.flows, FLOW_PICTURES)):
        for path in copy_pictures(study, folder) if study else []:
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")
    wrong = stale()
    if options.check:
        for name in wrong:
            print(f"{name} is out of date: run `python docs/generate.py`", file=sys.stderr)
        return int(bool(wrong))
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
