"""Make the parts of the documentation that follow from code and results.

    python docs/generate.py                     every generated page, and README.md's table
    python docs/generate.py --check             change nothing; exit code 1 if something is stale
    python docs/generate.py --gif RUN           docs/dream.gif, from a run's newest dream video
    python docs/generate.py --fidelity STUDY    docs/fidelity/*.png, from the folder of a study
    python docs/generate.py --flows STUDY       docs/flows/*.png, likewise
    python docs/generate.py --minatar STUDY     docs/minatar/*.png, likewise

Generated are docs/configuration.md (from the settings), every page that has a template in
`docs/templates/`, and the appendices with all tables of a study. A number that is in no results
file is not printed.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import numpy as np  # noqa: E402
import settings_page  # noqa: E402
import template_pages  # noqa: E402
from PIL import Image  # noqa: E402
from settings_page import markdown_table  # noqa: E402

README, CONFIGURATION = ROOT / "README.md", ROOT / "docs" / "configuration.md"
PICTURES, FLOW_PICTURES = ROOT / "docs" / "fidelity", ROOT / "docs" / "flows"
MINATAR_PICTURES = ROOT / "docs" / "minatar"
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
    # results from before comparisons had a sentence have the ratio at the baseline's score
    said = result.get("sentence") or _ratio_sentence(result.get("steps_ratio"), first)
    if said:
        parts.append(said)
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


# Pictures of the studies


def copy_pictures(study: Path, folder: Path | None = None) -> list[Path]:
    """Copy the figures that pages show from a study's folder to a folder of docs (fidelity).

    Names begin with the game: those of `runs/fidelity_long/pong` are `long_pong_*`.

    Raises:
        FileNotFoundError: the folder holds none.
    """
    shown = {f"{name}.png" for names in template_pages.CAPTIONS.values() for name in names}
    figures = [one for one in sorted((study / "figures").glob("*.png")) if one.name in shown]
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
        **template_pages.pages(_origin),
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

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(video), "-f", "rawvideo"]
    done = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    about = re.search(r"Video: .*?, (\d+)x(\d+)\b.*? ([\d.]+) fps", done.stderr.decode())
    if about is None:
        raise ValueError(f"{video}: expected ffmpeg to name size and speed, got neither")
    width, height, fps = int(about[1]), int(about[2]), float(about[3])
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)
    # MP4 leaves noise in flat areas that a GIF would have to spell out: coarser colours hide it
    flat = (np.round(frames.astype(np.float32) / 16) * 16).clip(0, 255).astype(np.uint8)
    # one palette for all frames, so that nothing flickers; made from a sample of them
    sample = flat[:: max(1, len(flat) // 16)].reshape(-1, width, 3)
    palette = Image.fromarray(sample).quantize(256)
    dither = Image.Dither.NONE
    images = [Image.fromarray(one).quantize(palette=palette, dither=dither) for one in flat]
    duration = round(1000 / fps)
    images[0].save(target, save_all=True, append_images=images[1:], duration=duration, loop=0)
    return target


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="only say what is out of date")
    parser.add_argument("--gif", type=Path, metavar="RUN", help="make docs/dream.gif of a run")
    parser.add_argument("--fidelity", type=Path, metavar="STUDY", help="make docs/fidelity/*.png")
    parser.add_argument("--minatar", type=Path, metavar="STUDY", help="make docs/minatar/*.png")
    parser.add_argument("--flows", type=Path, metavar="STUDY", help="make docs/flows/*.png")
    options = parser.parse_args()
    if options.gif:
        path = write_gif(newest_video(options.gif))
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")
        return 0
    for study, folder in (
        (options.fidelity, PICTURES),
        (options.flows, FLOW_PICTURES),
        (options.minatar, MINATAR_PICTURES),
    ):
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
