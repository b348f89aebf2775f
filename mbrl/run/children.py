"""Runs in processes of their own, several side by side: for commands that start many of them.

A run that is done is not started, a run that fails does not stop the others, and an interruption
asks the runs at work to stop (SIGTERM, once) and starts no more.
"""

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Child:
    """One run.

    Attributes:
        title: names it on the terminal.
        log: file for its output; made with its folder.
        done: whether its result is on disk.
        environment: variables on top of this process's own.
        summary: asked once it is done: what it found, in a few words.
    """

    title: str
    command: Sequence[str]
    log: Path
    done: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    summary: Callable[[], str] | None = None


def run_all(children: Sequence[Child], jobs: int, console: Console) -> list[str]:
    """Run every child that is not done, `jobs` at a time, in their order.

    One alone shows its output on the terminal; several side by side write it to their logs.

    Returns:
        One sentence for each run that failed or stopped before its end.

    Raises:
        KeyboardInterrupt: after the runs at work were asked to stop, and have ended.
    """
    at_work: set[subprocess.Popen[bytes]] = set()
    pool = ThreadPoolExecutor(jobs)
    try:
        runs = [pool.submit(_run, child, jobs, console, at_work) for child in children]
        return [problem for run in runs if (problem := run.result())]
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in tuple(at_work):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run(
    child: Child, jobs: int, console: Console, at_work: set[subprocess.Popen[bytes]]
) -> str | None:
    """Run one child if it is not done; returns what went wrong, if anything."""
    if child.done():
        console.print(f"{child.title}: done before", highlight=False)
        return None
    child.log.parent.mkdir(parents=True, exist_ok=True)
    console.print(f"{child.title}: running", highlight=False)
    with child.log.open("ab") as log:
        process = subprocess.Popen(
            child.command,
            env={**os.environ, **child.environment},
            stdin=subprocess.DEVNULL,
            stdout=None if jobs == 1 else log,
            stderr=log,
            process_group=0,  # Ctrl-C reaches it through us alone: a second signal means "at once"
        )
        at_work.add(process)
        code = process.wait()
        at_work.discard(process)
    if code == 0 and child.done():
        if child.summary is not None:
            console.print(f"{child.title}: {child.summary()}", highlight=False)
        return None
    problem = f"{child.title} was stopped before its end"
    if code != 0:
        last = child.log.read_text(errors="replace").strip().splitlines()[-1:]
        why = f"{' '.join(last)} (all of it: {child.log})"
        problem = f"{child.title} failed with exit code {code}: {why}"
    # at once: the others may take hours
    console.print(problem, style="red", highlight=False, markup=False, soft_wrap=True)
    return problem
