"""ProcessEnv: one environment in a process of its own, which can be ended when it hangs.

In: settings. Out: the same calls as `make_env` gives, with a bound on how long one may take. A
call that takes longer, and a process that dies, are exceptions like any other of an environment;
whoever holds it makes it anew. gymnasium's AsyncVectorEnv does not serve here: its environments
share one fate (a worker that fails or hangs leaves the whole vector unusable), and it makes a
further environment in the calling process. It refuses to carry `info` but for what `envs.vector`
reads: the rest may be large, or not fit through a pipe.
"""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
import weakref
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym

from envs.errors import EnvError, told
from envs.make import assumed, make_env
from envs.settings import EnvSettings

KEPT_INFO = ("life_loss", "ram")
START_TIMEOUT_S = 300.0
"""How long a process may take to make its environment."""
_LOOKS_S = 1.0  # between looks of a process whether its parent is still there


def make_one(settings: EnvSettings, apart: bool) -> gym.Env[Any, Any]:
    """What `make_env` makes, here or `apart`, in a process of its own.

    Raises:
        EnvError: it cannot be made.
    """
    if not apart:
        return make_env(settings)
    env = ProcessEnv(settings)
    env.wait_until_ready()
    return env


class ProcessEnv(gym.Env[Any, Any]):
    """One environment elsewhere; the process starts at once, and the first call waits for it.

    Attributes:
        assumed: what is assumed of the actions, in one sentence, or "".
    """

    def __init__(self, settings: EnvSettings) -> None:
        """Start the process; a call may take `settings.step_timeout_s` seconds, if it is given."""
        self._settings, self._timeout_s = settings, settings.step_timeout_s
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = _start(theirs)
        theirs.close()
        self._end = weakref.finalize(self, _end, self._process, self._pipe)
        self._pipe.send(settings)
        self._asked, self._since = "", time.monotonic()
        self._ready = False

    def wait_until_ready(self) -> None:
        """Wait until the environment is made, and take over its spaces.

        Raises:
            EnvError: it cannot be made.
        """
        if not self._ready:
            self._asked, self._since = "its constructor", time.monotonic()
            try:
                self.observation_space, *rest = self._answer(START_TIMEOUT_S)
            except OSError as error:  # too slow, or dead
                raise EnvError(f"cannot make {self._settings.name}: {error}") from error
            self.action_space, self.assumed = rest
            self._ready = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """As the environment's; TimeoutError if it takes too long."""
        self.wait_until_ready()
        self._ask("reset", seed=seed, options=options)
        result, self.action_space, self.assumed = self._answer(self._timeout_s)
        return result

    def begin_step(self, action: Any) -> None:
        """Ask for a step; `finish_step` gives what came of it."""
        self._ask("step", action)

    def finish_step(self) -> Any:
        """What the step gave.

        Raises:
            TimeoutError: it took too long, since it was asked for.
            ConnectionError: the process died.
            RuntimeError: the environment raised; the message is what it said.
        """
        return self._answer(self._timeout_s)

    def step(self, action: Any) -> Any:
        """As the environment's; see `finish_step`."""
        self.begin_step(action)
        return self.finish_step()

    def close(self) -> None:
        """End the process, whatever it does."""
        self._end()

    def _ask(self, call: str, *args: Any, **kwargs: Any) -> None:
        self._asked, self._since = f"{call}()", time.monotonic()
        try:
            self._pipe.send((call, args, kwargs))
        except OSError:  # it has died, which `_answer` says
            return

    def _answer(self, timeout_s: float | None) -> Any:
        left = None if timeout_s is None else max(0.0, self._since + timeout_s - time.monotonic())
        if not self._pipe.poll(left):
            self._process.kill()
            limit = "env.step_timeout_s" if self._ready else "the limit for making one"
            raise TimeoutError(f"{self._asked} has not returned within {timeout_s:g} s ({limit})")
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            self._process.kill()
            raise ConnectionError(
                f"the environment's process died in {self._asked}, exit code {self._process.wait()}"
            ) from None
        if kind == "refused":
            raise EnvError(value)
        if kind == "raised":
            raise RuntimeError(value)
        return value


def _start(theirs: Connection) -> subprocess.Popen[bytes]:
    """A process that serves the other end of that pipe.

    Not multiprocessing's: that runs the caller's main script again, and a fork copies locked locks.
    """
    code = f"from envs.process import serve; serve({theirs.fileno()})"
    modules = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": modules},
        pass_fds=(theirs.fileno(),),
        process_group=0,  # Ctrl-C is for the run, which then ends us
    )


def _end(process: subprocess.Popen[bytes], pipe: Connection) -> None:
    pipe.close()
    process.kill()
    process.wait()


def serve(descriptor: int) -> None:
    """Make the environment whose settings come first, and answer calls until the caller is gone."""
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    pipe = Connection(descriptor)
    try:
        env = make_env(pipe.recv())
    except EnvError as error:
        pipe.send(("refused", str(error)))
        return
    pipe.send(("gave", (env.observation_space, env.action_space, assumed(env))))
    while True:
        try:
            call, args, kwargs = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            result = _slim(getattr(env, call)(*args, **kwargs))
            if call == "reset":  # which may replace the action space
                result = result, env.action_space, assumed(env)
            pipe.send(("gave", result))
        except Exception as error:
            pipe.send(("raised", told(error)))


def _slim(result: Any) -> Any:
    """What `reset` or `step` gave, with the part of its info that is read."""
    if isinstance(result, tuple) and result and isinstance(result[-1], dict):
        kept = {name: result[-1][name] for name in KEPT_INFO if name in result[-1]}
        return (*result[:-1], kept)
    return result


def _leave_with_parent(parent: int) -> None:
    """End this process once its parent is gone, even inside a step that never returns."""
    while os.getppid() == parent:
        time.sleep(_LOOKS_S)
    os._exit(1)
