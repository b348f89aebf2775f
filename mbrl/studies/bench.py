"""`mbrl bench`: the studies there are, their commands, and the process that makes one trial.

    python -m mbrl.studies.bench runs/fidelity/pong/pixelcnn-0/trial.json

makes one trial by hand, or continues it. Adding a study is adding a folder with a subclass of
`Study` as `STUDY` in its `study.py`, and a line in `STUDIES`. It is imported when it is called.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mbrl.studies.arms import listed
from mbrl.studies.options import SUBJECT, add_options
from mbrl.studies.study import Study
from mbrl.studies.trial import command_line
from mbrl.studies.worlds import study as worlds

STUDIES = {
    "fidelity": (
        "mbrl.studies.fidelity.study",
        "which decoders keep a game's small objects, and what their codes know",
    ),
    "flow": (
        "mbrl.studies.flows.study",
        "what sharing a flow's coupling networks saves, and what it costs in bits",
    ),
}
"""Modules of the studies, and a line of help, by the names of their commands."""


class _StudyParser(argparse.ArgumentParser):
    """The parser of one study's command, which gets its options when it is used."""

    study: str

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.study not in STUDIES:
            return super().parse_known_args(args, namespace)
        study = study_of(self.study, args or ())
        self.description = study.description
        self.epilog = listed(study.trial.known_arms)
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self.add_argument("words", nargs="*", metavar="GAME key=value", help=study.words)
        for model in (study.options, study.trial):
            add_options(self, model)
        return super().parse_known_args(args, namespace)


def add_studies(parser: argparse.ArgumentParser) -> None:
    """Give `mbrl bench` a command for each study."""
    commands = parser.add_subparsers(dest="study", required=True, parser_class=_StudyParser)
    for name, (_, line) in STUDIES.items():
        commands.add_parser(name, help=line).study = name
    table = commands.add_parser("worlds", help="which environments can be trained on: a table")
    table.study = "worlds"
    worlds.add_options(table)


def study_of(name: str, words: Sequence[str] = ()) -> Study[Any]:
    """The study of that name, or the one it hands such words of a command to."""
    study: Study[Any] = importlib.import_module(STUDIES[name][0]).STUDY
    return study.of(words)


def bench(given: Mapping[str, Any]) -> list[str]:
    """Run the study that a command names; one sentence for each trial that failed."""
    if given["study"] == "worlds":
        return worlds.command(given)
    return study_of(given["study"], given["words"]).bench(given)


def main(arguments: list[str]) -> int:
    """Make the trial of a `trial.json`; returns the exit code."""
    [path] = arguments
    whole = json.loads(Path(path).read_text(encoding="utf-8"))
    study = study_of(whole["study"], [str(whole["trial"].get(SUBJECT))])
    return command_line(study.trial, study.make, path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
