"""`ray job submit` against a real head on the loopback address, as docs/jobs.md describes it."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RAY = Path(sys.executable).with_name("ray")


@dataclass
class Head:
    """A Ray head of our own."""

    address: str  # of its dashboard
    folder: Path  # its temporary one; all its processes have that path in their command lines
    environment: dict[str, str]  # what the `ray` command needs to talk to it


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now; all are held open until the last is found."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def processes_of(folder: Path) -> list[int]:
    """Ids of the processes of the head in this folder, and of no others."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it may have ended by now
            if entry.name.isdigit() and str(folder) in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return found


def wait_for(head: Head, process: subprocess.Popen[bytes], seconds: float) -> None:
    """Until the head answers."""
    token = head.environment["RAY_AUTH_TOKEN"]
    request = urllib.request.Request(
        f"{head.address}/api/version", headers={"Authorization": f"Bearer {token}"}
    )
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "the head ended while it was starting"
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise TimeoutError(f"no answer from {head.address} within {seconds} s")


@pytest.fixture
def head() -> Iterator[Head]:
    gcs, dashboard, client, agent, grpc, metrics = free_ports(6)
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # socket paths have to be short
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    address = f"http://127.0.0.1:{dashboard}"
    ports = {
        "--port": gcs,
        "--dashboard-port": dashboard,
        "--ray-client-server-port": client,
        "--dashboard-agent-listen-port": agent,
        "--dashboard-agent-grpc-port": grpc,
        "--metrics-export-port": metrics,
    }
    command = [RAY, "start", "--head", "--block", "--node-ip-address", "127.0.0.1"]
    command += ["--num-cpus", "2", "--temp-dir", folder]
    command += [word for flag, port in ports.items() for word in (flag, str(port))]
    head = Head(address, folder, environment)
    with (folder / "start.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(head, process, 90)
        yield head
    finally:
        process.send_signal(signal.SIGTERM)  # ends what this command started, and nothing else
        try:
            process.wait(30)
        finally:
            for left in processes_of(folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(left, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for its processes in /proc")
@pytest.mark.timeout(420)
def test_a_submitted_job_runs_the_whole_loop_on_the_heads_actors(
    head: Head, tmp_path: Path
) -> None:
    command = [RAY, "job", "submit", "--address", head.address, "--working-dir", ".", "--"]
    command += ["python", "-m", "mbrl", "train", "configs/debug.yaml"]
    command += [f"run.dir={tmp_path / 'run'}"]
    command += ["learn_model.train_ratio=8", "learn_policy.dream_ratio=8"]
    done = subprocess.run(
        command, env=head.environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "succeeded" in done.stdout + done.stderr
    assert "dream on MinAtar/Breakout-v1: return" in done.stdout
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["env_steps"] == 512

    # the collectors were actors of this head
    logs = head.folder / "session_latest" / "logs"
    actors = [path for path in logs.glob("worker-*.out") if "CollectorActor" in path.read_text()]
    assert len(actors) == 2

    # what was sent is what the run needs, and no more
    (package,) = (head.folder / "session_latest/runtime_resources/working_dir_files").glob(
        "_ray_pkg_*/"
    )
    sent = {path.name for path in package.iterdir()}
    assert {"mbrl", "agents", "envs", "configs"} <= sent
    assert not sent & {".git", ".venv", "runs", "results", "docs"}
    assert (package / "mbrl/replay/store.py").exists()
