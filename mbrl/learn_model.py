"""WorldModelLearner: replay batches in, gradient steps on the world model, dream starts out.

One class does the work, in the training process or as N Ray actors that average gradients with
torch DDP (`RemoteLearners`, same methods). Each learner samples from a ring of its own, filled by
tailing the replay store, so no frame ever passes through the driver. The amount of learning is a
count of replayed rows, never a time.
"""

import copy
import logging
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.numerics import restore_generator
from envs.actions import stored_type
from mbrl.config.schema import LearnModelSettings
from mbrl.device import pick_device
from mbrl.episode import SequenceBatch
from mbrl.errors import TrainingError
from mbrl.feed import feed
from mbrl.replay import ReplayStore, SequenceSampler
from mbrl.seeding import seed
from mbrl.streams import types_of
from mbrl.world_model.latent import Latent
from mbrl.world_model.layouts import make_world_model
from mbrl.world_model.model import Metrics, WorldModel
from mbrl.world_model.settings import WorldModelSettings
from mbrl.world_model.transfer import Taken, take_over

Space = spaces.Space[np.ndarray]
logger = logging.getLogger(__name__)


class _Loss(nn.Module):
    """`WorldModel.loss` as a forward pass, which is what DDP can wrap."""

    def __init__(self, world_model: WorldModel) -> None:
        super().__init__()
        self.world_model = world_model

    def forward(
        self, batch: SequenceBatch, generator: torch.Generator
    ) -> tuple[Tensor, Metrics, Latent]:
        """The loss of one batch."""
        return self.world_model.loss(batch, generator)


def step_size(settings: LearnModelSettings, update: int) -> float:
    """Adam's step size at an update, the first being 1: growing from zero, then falling.

    It depends on the count alone, not on the budget, so a longer run begins like a shorter one.
    """
    warm = min(1.0, update / max(1, settings.warmup_updates))
    fallen = 1.0 if settings.halve_after is None else 1 / (1 + update / settings.halve_after)
    return settings.lr * warm * fallen


class WorldModelLearner:
    """Trains one replica of the world model."""

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        model: WorldModelSettings,
        settings: LearnModelSettings,
        store: ReplayStore,
        capacity_steps: int,
        ring_directory: Path | None,
        root_seed: int,
        device: str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        holdout: float = 0.0,
    ) -> None:
        """Build the model (the same on every rank), the optimiser and the ring."""
        self.settings, self.store = settings, store
        self.device = pick_device(device)
        self.batch_size = settings.batch_size // world_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed(root_seed, "world_model"))
            self.model = make_world_model(observation_space, action_space, model).to(self.device)
        if not settings.train_dynamics:
            for part in self.model.foresight:
                part.requires_grad_(False)
        self.loss: nn.Module = _Loss(self.model)
        if world_size > 1:
            self.loss = nn.parallel.DistributedDataParallel(self.loss, broadcast_buffers=False)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=settings.lr, eps=settings.adam_eps, fused=True
        )
        self.updates = 0
        self.root_seed, self.rank = root_seed, rank
        self.rng = np.random.default_rng(seed(root_seed, "replay", rank))
        self.generator = torch.Generator(self.device).manual_seed(seed(root_seed, "code", rank))
        self.sampler = SequenceSampler(
            capacity_steps,
            types_of(observation_space),
            *stored_type(action_space),
            directory=ring_directory,
            holdout=holdout,
        )

    def begin_with(self, weights: Mapping[str, Tensor], anew: Sequence[str]) -> Taken:
        """Take over what fits of another model; see `mbrl.world_model.transfer`."""
        return take_over(self.model, weights, anew)

    def refresh(self, order: Sequence[str] | None = None) -> int:
        """Take new segments into the ring, on resume those it had in `order`; the rows in it."""
        self.sampler.refresh(self.store, order)
        return self.sampler.num_rows

    def segments(self) -> list[str]:
        """Names of the segments in the ring, in the order they were loaded."""
        return self.sampler.segments

    def learn(self, updates: int) -> tuple[dict[str, float], Latent]:
        """Take `updates` gradient steps.

        Returns:
            Mean metrics, and the latest posterior latents (M, ...) that are not terminal.

        Raises:
            TrainingError: a loss or gradient was not finite; such a step leaves the weights.
        """
        sums: Metrics = {}
        starts: list[Latent] = []
        alive: list[Tensor] = []
        bad = torch.zeros((), device=self.device)
        rows_per_update = self.batch_size * self.settings.sequence_length
        enough = -(-self.settings.max_starts // rows_per_update)
        self.model.train()
        for update, batch in enumerate(feed(self._sample, updates, self.device)):
            if self.updates == 0:
                if told := self.model.doubt(batch):
                    logger.warning("the world model %s", told)
                self.model.initialise(batch, self.generator)
            metrics, latent, failed = self._update(batch)
            bad += failed
            for name, value in metrics.items():
                sums[name] = sums[name] + value if name in sums else value
            if update >= updates - enough:
                # picked at the end: to pick by a mask waits for the device
                starts.append(latent.flatten())
                alive.append(torch.as_tensor(~batch.terminated, device=self.device).flatten())
        self.model.eval()
        if bad:
            raise TrainingError(
                f"world model: {int(bad)} of {updates} updates had a loss or gradient that is not "
                f"finite (they were not applied); lower learn_model.lr, or look at the rewards "
                f"in replay"
            )
        means = {name: float(value) / updates for name, value in sums.items()}
        return means, Latent.cat(starts)[torch.cat(alive)][-self.settings.max_starts :]

    def _sample(self) -> SequenceBatch:
        own = self.settings
        return self.sampler.sample(
            self.batch_size, own.sequence_length, self.rng, rewarded=own.rewarded
        )

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """The terms of the loss on a batch of the episodes held out, by the names of `learn`.

        Nothing as long as these have fewer rows than a sequence. What is drawn follows from the
        number of updates, so looking changes nothing that is learnt.
        """
        length = self.settings.sequence_length
        if self.sampler.rows_on_tape(held_out=True) < length:
            return {}
        stream = seed(self.root_seed, "holdout", self.rank, self.updates)
        rng = np.random.default_rng(stream)
        batch = self.sampler.sample(self.batch_size, length, rng, held_out=True)
        generator = torch.Generator(self.device).manual_seed(stream)
        self.model.eval()
        _, metrics, _ = self.model.loss(batch, generator)
        return {name: float(value) for name, value in metrics.items() if name != "kl_weight"}

    def _update(self, batch: SequenceBatch) -> tuple[Metrics, Latent, Tensor]:
        """One gradient step; the last value is 1 if it was skipped as something was not finite."""
        loss, metrics, latent = self.loss(batch, self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        failed = (~torch.isfinite(norm)).float()
        # the fused optimiser skips the step on the device by this flag, without synchronising
        self.optimizer.found_inf = failed  # type: ignore[attr-defined]
        self.updates += 1
        for group in self.optimizer.param_groups:
            group["lr"] = step_size(self.settings, self.updates)
        self.optimizer.step()
        return {**metrics, "grad_norm": norm.detach()}, latent, failed

    def model_state(self) -> dict[str, Tensor]:
        """The weights, on the CPU."""
        return {name: value.cpu().clone() for name, value in self.model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning continues from: weights, optimiser, streams, counters."""
        return {
            "model": self.model_state(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "updates": self.updates,
            **self.streams(),
        }

    def streams(self) -> dict[str, Any]:
        """The random streams of this learner alone."""
        return {"generator": self.generator.get_state(), "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        On another kind of device all but the codes' random stream does: see `agents.numerics`.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
        restore_generator(self.generator, state["generator"])
        self.rng.bit_generator.state = state["rng"]

    def close(self) -> None:
        """Let go of the ring."""
        self.sampler.close()


class _LearnerActor(WorldModelLearner):
    """A rank of the process group, built in two steps: rank 0's address must be known first."""

    def __init__(self) -> None:
        """Wait for `start`."""

    def address(self) -> str:
        """A free address on this node, for the process group."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"tcp://{host}:{probe.getsockname()[1]}"

    def start(self, address: str, arguments: dict[str, Any], rank: int, world_size: int) -> None:
        """Join the group and build the learner."""
        cuda = pick_device(arguments["device"]).type == "cuda"
        if world_size > 1:
            torch.distributed.init_process_group(
                "nccl" if cuda else "gloo", init_method=address, rank=rank, world_size=world_size
            )
        directory = arguments["ring_directory"]
        arguments = {**arguments, "ring_directory": directory and directory / f"rank{rank}"}
        super().__init__(**arguments, rank=rank, world_size=world_size)


class RemoteLearners:
    """N learner actors behind the interface of one; `model` is a local copy of rank 0's."""

    def __init__(self, arguments: dict[str, Any], settings: LearnModelSettings) -> None:
        """Start the actors with the `arguments` of `WorldModelLearner`, but for the rank."""
        count = settings.num_learners
        actor = ray.remote(num_gpus=settings.gpus_per_learner, num_cpus=1)(_LearnerActor)
        self.actors = [actor.remote() for _ in range(count)]
        address = ray.get(self.actors[0].address.remote())
        ranked = enumerate(self.actors)
        ray.get([one.start.remote(address, arguments, rank, count) for rank, one in ranked])
        self.model = make_world_model(
            arguments["observation_space"], arguments["action_space"], arguments["model"]
        ).eval()
        self._pull()

    def _pull(self) -> None:
        self.model.load_state_dict(ray.get(self.actors[0].model_state.remote()))

    def begin_with(self, weights: Mapping[str, Tensor], anew: Sequence[str]) -> Taken:
        """As `WorldModelLearner.begin_with`, on every rank."""
        taken: list[Taken] = ray.get(
            [one.begin_with.remote(dict(weights), anew) for one in self.actors]
        )
        self._pull()
        return taken[0]

    def refresh(self, order: Sequence[str] | None = None) -> int:
        """As `WorldModelLearner.refresh`, on every rank; rows in rank 0's ring."""
        return int(ray.get([one.refresh.remote(order) for one in self.actors])[0])

    def segments(self) -> list[str]:
        """As `WorldModelLearner.segments`, of rank 0."""
        return list(ray.get(self.actors[0].segments.remote()))

    def learn(self, updates: int) -> tuple[dict[str, float], Latent]:
        """As `WorldModelLearner.learn`; metrics are averaged, starts come from every rank."""
        results = ray.get([one.learn.remote(updates) for one in self.actors])
        self._pull()
        names = results[0][0]
        metrics = {name: float(np.mean([result[0][name] for result in results])) for name in names}
        starts = Latent.cat([result[1].to("cpu") for result in results])
        return metrics, starts

    def held_out(self) -> dict[str, float]:
        """As `WorldModelLearner.held_out`, averaged over the ranks."""
        results = ray.get([one.held_out.remote() for one in self.actors])
        common = [name for name in results[0] if all(name in one for one in results)]
        return {name: float(np.mean([one[name] for one in results])) for name in common}

    def state_dict(self) -> dict[str, Any]:
        """Rank 0's state, and the random streams of all ranks."""
        state: dict[str, Any] = ray.get(self.actors[0].state_dict.remote())
        return {**state, "ranks": ray.get([one.streams.remote() for one in self.actors])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give every rank the weights and its own streams (rank 0's if their number differs)."""
        ranks = state.get("ranks", [])
        if len(ranks) != len(self.actors):
            ranks = [{}] * len(self.actors)
        pairs = zip(self.actors, ranks, strict=True)
        ray.get([one.load_state_dict.remote({**state, **own}) for one, own in pairs])
        self._pull()

    def close(self) -> None:
        """End the actors."""
        for one in self.actors:
            ray.kill(one)
