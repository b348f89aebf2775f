"""Who collects and evaluates where the config wants it: this process, or Ray actors beside it.

`LocalCollectors` and `RemoteCollectors` share one interface (begin a fragment, finish it, publish
new weights), so the loop cannot tell them apart. Actors get weights by one `ray.put` per version
and send back only receipts; frames go straight from an actor to the replay store.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
from gymnasium import spaces

from agents.dream_ppo import DreamPPO
from agents.modules import LatentModule, latent_spec
from envs import EnvError
from mbrl.acting import Explorers, LatentPolicy, RandomPolicy
from mbrl.collect import Collector, Receipt, next_incarnation, spaces_of
from mbrl.config.schema import Config
from mbrl.errors import CollectError, MbrlError
from mbrl.evaluate import EvalResult, judge
from mbrl.replay import ReplayStore
from mbrl.replay.store import replay_folder
from mbrl.run.run import Run
from mbrl.seeding import seed
from mbrl.world_model.layouts import make_world_model
from mbrl.world_model.model import WorldModel

State = dict[str, Any]
Space = spaces.Space[np.ndarray]

STOP_PATIENCE_S = 10.0
"""How long a run that was asked to stop still waits for evaluations in actors."""
RESTART_TIMEOUT_S = 600.0
"""How long a dead collector may take to come back before the run gives up."""


class LocalCollectors:
    """One collector in this process; a fragment is collected when it is asked for."""

    actor_restarts = 0

    def __init__(self, run: Run, store: ReplayStore, policy: LatentPolicy) -> None:
        self.collector = _collector(run.config, store, 0)
        self.random = RandomPolicy(
            policy.action_space, seed(run.config.seed, "prefill"), run.config.collect.repeat
        )
        self.policy = explorers(run.config, policy, self.random)
        self.begun = (0, 0, False)

    def begin(self, steps: int, env_steps_total: int, at_random: bool) -> None:
        """Ask for a fragment of that many steps."""
        self.begun = (steps, env_steps_total, at_random)

    def finish(self) -> list[Receipt]:
        """Collect it."""
        return [collect(self.collector, self.policy, *self.begun)]

    def publish(self, world_model: WorldModel, policy: DreamPPO) -> None:
        """The acting policy shares the learners' weights; only the version is news."""
        self.policy.policy.version = policy.version

    def state_dict(self) -> State:
        """The collector's slots and the memory of who acts."""
        return {
            "collector": self.collector.state_dict(),
            "acts": self.collector.policy is self.policy,
            "policy": self.policy.state_dict(),
            "random": self.random.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue exactly where `state_dict` was taken, if it was in this process."""
        if not state:
            return
        self.collector.load_state_dict(state["collector"])
        if "acts" not in state:  # of a checkpoint from before there were explorers
            acts, memory = state["policy"] is not None, state["policy"]
            state = {**state, "acts": acts}
            if acts:
                self.policy.policy.load_state_dict(memory)
        else:
            self.policy.load_state_dict(state["policy"])
        if state.get("random") is not None:
            self.random.load_state_dict(state["random"])
        self.collector.policy = self.policy if state["acts"] else self.random

    def close(self) -> None:
        """Close the environments."""
        self.collector.close()


class CollectorActor:
    """A collector, a world model and a policy network to act with, in a process of their own."""

    def __init__(self, config: Config, index: int, store: ReplayStore) -> None:
        """Build everything; Ray runs this again when it restarts the actor after a crash."""
        torch.set_num_threads(1)
        self.collector = _collector(config, store, index)
        stream = (index, self.collector.incarnation)
        seen = self.collector.vector.single_observation_space
        actions = self.collector.vector.single_action_space
        own = seed(config.seed, "prefill", *stream)
        self.random = RandomPolicy(actions, own, config.collect.repeat)
        self.snapshots = SnapshotPolicy(config, seen, actions, seed(config.seed, "act", *stream))
        self.policy = explorers(config, self.snapshots.acting, self.random)

    def pid(self) -> int:
        """The process id, for tests that end this process."""
        return os.getpid()

    def collect(self, steps: int, env_steps_total: int, weights: State | None) -> Receipt:
        """Collect with these weights, or at random if there are none yet."""
        if weights is not None:
            self.snapshots.load(weights)
        return collect(self.collector, self.policy, steps, env_steps_total, weights is None)


def explorers(config: Config, policy: LatentPolicy, random: RandomPolicy) -> Explorers:
    """The policy, with random actions beside it as the settings say."""
    # what learns from its own steps cannot use those of others
    share = 0.0 if config.agent == "model_free" else config.collect.explore
    return Explorers(policy, random, share)


def collect(
    collector: Collector, policy: Explorers, steps: int, env_steps_total: int, at_random: bool
) -> Receipt:
    """Collect a fragment, at random or with the policy, which is told what was earned."""
    count = collector.settings.num_envs
    explored = count if at_random else policy.slots(count)
    acting = policy.random if at_random else policy
    receipt = collector.collect(steps, acting, env_steps_total)
    policy.tell(np.asarray(receipt.earned), receipt.steps // count, explored)
    return receipt


def _collector(config: Config, store: ReplayStore, index: int) -> Collector:
    """A collector that plays other episodes than those of its index who wrote here before."""
    incarnation = next_incarnation(store, index)
    if (before := config.replay.init_from) is not None:  # nor those that are recorded
        incarnation = max(incarnation, next_incarnation(ReplayStore(replay_folder(before)), index))
    return Collector(config.env, config.collect, store, config.seed, index, incarnation)


class RemoteCollectors:
    """N collector actors. The next fragment is collected while the learners work on the last.

    An actor that dies is restarted by Ray; what it had committed counts, the rest is collected
    again.
    """

    def __init__(self, run: Run, store: ReplayStore) -> None:
        self.run, self.store, config = run, store, run.config
        # a fraction of a core each: collectors wait for the learners most of the time
        actor = ray.remote(num_cpus=0.25, max_restarts=-1, max_task_retries=0)(CollectorActor)
        count = config.collect.num_collectors
        self.actors = [actor.remote(config, index, store) for index in range(count)]
        self.weights: Any = None
        self.begun: list[Any] = []
        self.total, self.share, self.known = 0, 0, set[str]()
        self.actor_restarts = 0

    def begin(self, steps: int, env_steps_total: int, at_random: bool) -> None:
        """Start collecting; each actor takes an equal share."""
        self.total = env_steps_total
        self.known = {info.name for info in self.store.segments()}
        self.weights_in_use = None if at_random else self.weights
        self.share = steps // len(self.actors)
        self.begun = [self._ask(actor) for actor in self.actors]

    def _ask(self, actor: Any) -> Any:
        return actor.collect.remote(self.share, self.total, self.weights_in_use)

    def finish(self) -> list[Receipt]:
        """Wait for all shares, collecting again what a dead actor did not commit."""
        return [self._finish(index) for index in range(len(self.actors))]

    def _finish(self, index: int) -> Receipt:
        promise = self.begun[index]
        for _ in range(100):
            try:
                receipt: Receipt = ray.get(promise)
                return receipt
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, EnvError | MbrlError):
                    raise CollectError(f"collector {index}: {error.cause}") from error
                raise
            except ray.exceptions.RayActorError as error:
                self._await_restart(index, error)
                if committed := self._committed(index):
                    # it died after its one commit: nothing is missing but the scores
                    return Receipt(committed, [], 0, 0, 0.0)
                promise = self._ask(self.actors[index])
        raise CollectError(
            f"collector {index}: expected it to come back, but it died 100 times in one fragment; "
            f"look at the actor's log for the reason"
        )

    def _await_restart(self, index: int, error: ray.exceptions.RayActorError) -> None:
        """Wait until Ray has started the actor again; one death may give several errors."""
        if error.actor_init_failed:
            raise CollectError(f"collector {index}: it could not be built: {error}") from error
        self.actor_restarts += 1
        self.run.progress.print(f"collector {index} died; Ray restarts it")
        promise = self.actors[index].pid.options(max_task_retries=-1).remote()
        try:
            ray.get(promise, timeout=RESTART_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError as late:
            raise CollectError(
                f"collector {index}: expected Ray to restart it within {RESTART_TIMEOUT_S:.0f} s; "
                "`ray status` shows what the cluster lacks. The same command resumes"
            ) from late

    def _committed(self, index: int) -> int:
        """Steps this collector has committed since the fragment began."""
        return sum(
            info.steps
            for info in self.store.segments()
            if info.name not in self.known and info.writer.split("r")[0] == f"c{index}"
        )

    def publish(self, world_model: WorldModel, policy: DreamPPO) -> None:
        """Put the newest weights where the next fragment finds them."""
        self.weights = ray.put(snapshot(world_model, policy))

    def state_dict(self) -> State:
        """Nothing: open episodes of actors are not continued after a resume, new ones begin."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Nothing to continue."""

    def close(self) -> None:
        """End the actors."""
        for actor in self.actors:
            ray.kill(actor)


class Evaluations:
    """Evaluations on the way to the run's curve, which gets them in the order they were begun.

    With collectors in actors an evaluation is one too, beside training; else it is done at once.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.remote = run.config.collect.num_collectors > 0
        self.begun: list[tuple[int, Any]] = []

    def begin(
        self, world_model: WorldModel, policy: DreamPPO, acting: Callable[[str, int], LatentPolicy]
    ) -> None:
        """Judge these weights; `acting` makes the policy that does so in this process.

        Raises:
            Stopped: the run was asked to stop in the middle of it.
        """
        config, index = self.run.config, self.run.env_steps
        self.run.progress.update(phase="evaluate")
        if self.remote:
            weights = ray.put(snapshot(world_model, policy))
            promise = ray.remote(num_cpus=0)(evaluate_snapshot).remote(config, weights, index)
            self.begun.append((index, promise))
        else:
            here = acting("evaluate", index)
            self.begun.append((index, judge(here, config, stop=lambda: self.run.stopping)))

    def record(self, wait: bool) -> None:
        """Record those that are done, up to the first that is not; or wait for all.

        A run that was asked to stop waits `STOP_PATIENCE_S` at most; what is not done then is left
        out of the curve, and said.
        """
        while self.begun:
            env_steps, result = self.begun[0]
            if self.remote:
                if not self._done(result, wait):
                    if wait:
                        self._give_up()
                    return
                result = ray.get(result)
            self.run.record_evaluation(result, env_steps)
            self.begun.pop(0)

    def _done(self, promise: Any, wait: bool) -> bool:
        """Whether an evaluation in an actor is over, with `wait` after waiting for it."""
        patience_s = STOP_PATIENCE_S
        while not ray.wait([promise], timeout=1.0 if wait else 0)[0]:
            patience_s -= float(self.run.stopping)
            if not wait or patience_s < 0:
                return False
        return True

    def _give_up(self) -> None:
        """End the evaluations that are still at work."""
        for env_steps, promise in self.begun:
            ray.cancel(promise, force=True)
            self.run.progress.print(
                f"the evaluation at {env_steps:,} steps was not over and is left out of the curve"
            )
        self.begun = []


# -- weights on the move --------------------------------------------------------------------------


def snapshot(world_model: WorldModel, policy: DreamPPO) -> State:
    """Weights to act with, on the CPU."""
    model = {name: value.detach().cpu() for name, value in world_model.state_dict().items()}
    return {"world_model": model, "policy": policy.get_weights(), "version": policy.version}


class SnapshotPolicy:
    """A world model and a policy network on the CPU, which act with the snapshots they load."""

    def __init__(
        self, config: Config, observation_space: Space, action_space: Space, stream: int
    ) -> None:
        """Build both, to be given weights; `stream` seeds what the policy draws."""
        world_model = make_world_model(observation_space, action_space, config.world_model).eval()
        self.module: LatentModule = latent_spec(
            config.policy, world_model.feature_size, action_space, world_model.feature_map
        ).build()
        self.acting = LatentPolicy(
            world_model, lambda: self.module, action_space, stream, torch.device("cpu")
        )

    def load(self, weights: State) -> LatentPolicy:
        """Take the weights of a snapshot; returns the policy, always the same one."""
        self.acting.world_model.load_state_dict(weights["world_model"])
        self.module.load_state_dict(weights["policy"])
        self.acting.version = weights["version"]
        return self.acting


def evaluate_snapshot(config: Config, weights: State, index: int) -> EvalResult:
    """Judge a snapshot in whatever process this runs in."""
    torch.set_num_threads(1)
    both = spaces_of(config.env, config.collect.apart)
    policy = SnapshotPolicy(config, *both, seed(config.seed, "evaluate", index))
    return judge(policy.load(weights), config)
