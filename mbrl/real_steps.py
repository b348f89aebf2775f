"""The control without a dream: real steps just collected in, a `Recording` to learn from out.

`agent=model_free` is the dream agent with the dream left out. World model, features, networks and
policy learner are the same, and so is the loss; but the policy learns from the steps it has taken
itself, each once, while they are new (PPO on policy). The world model only encodes what is seen.

A piece is what one call of a collector added to an episode. The features of its steps come from
`observe`, which first follows the rows before it: as many as the world model is trained on. The
random prefill is never learned from, as no policy chose it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from gymnasium import spaces

from agents.dream_learner import Recording
from mbrl.config.schema import Config
from mbrl.episode import Array, Episode, SequenceBatch, arrived, joined
from mbrl.errors import ConfigError
from mbrl.replay import ReplayStore
from mbrl.world_model.model import WorldModel


class RealSteps:
    """Follows a replay store, and hands out what is new in it, once."""

    def __init__(
        self, store: ReplayStore, config: Config, actions: spaces.Space[np.ndarray]
    ) -> None:
        """Begin before the first step, or where `catch_up` leads.

        Raises:
            ConfigError: the actions are not counted: what a continuous policy drew is not
                what the environment got, where its bounds cut it off.
        """
        if not isinstance(actions, spaces.Discrete):
            raise ConfigError(
                f"agent: expected a Discrete action space for model_free, got {actions}; use dream "
                "or ppo"
            )
        self.first = int(actions.start)
        self.last = self.first + int(actions.n) - 1
        self.store, self.context = store, config.learn_model.sequence_length
        self._seen: set[str] = set()
        self._open: dict[str, Episode] = {}  # the newest rows of episodes that go on

    def catch_up(self, random_until: int) -> None:
        """Take all that is in the store as learned from: where a run resumes."""
        self._new_pieces(random_until)

    def record(
        self, model: WorldModel, generator: torch.Generator, random_until: int
    ) -> Recording | None:
        """What was collected since the last call, as the world model sees it now; None if nothing.

        Args:
            model: encodes what is seen.
            generator: of the codes' samples.
            random_until: env steps up to which no policy chose.
        """
        pieces = self._new_pieces(random_until)
        if not pieces:
            return None
        batch, valid = laid_out(pieces)
        start = model.initial(len(pieces), model.device)
        latent = model.observe(start, *model.inputs(batch), generator).latent
        action, reward, terminated = (
            torch.as_tensor(part[:, 1:].T.copy(), device=model.device)
            for part in (batch.prev_action, batch.reward, batch.terminated)
        )
        return Recording(
            obs=model.features(latent).transpose(0, 1),
            action=action.clamp(self.first, self.last) - self.first,  # padding has none
            reward=reward,
            continue_prob=1.0 - terminated.float(),
            valid=torch.as_tensor(valid.T.copy(), device=model.device),
        )

    def _new_pieces(self, random_until: int) -> list[tuple[Episode, int]]:
        """Rows that are new, behind their context, each with the first step to learn from."""
        pieces = []
        for info in self.store.segments():
            if info.name in self._seen:
                continue
            self._seen.add(info.name)
            for fragment in self.store.read(info):
                piece, first = self._behind_its_context(fragment, random_until)
                if fragment.env_steps_total > random_until and first < piece.rows - 1:
                    pieces.append((piece, first))
        return pieces

    def _behind_its_context(self, fragment: Episode, random_until: int) -> tuple[Episode, int]:
        """A fragment with the rows before it, and the first step that is new.

        The last row before it is new too: where its action led, only the fragment shows. Not if it
        was chosen at random.
        """
        before = self._open.pop(fragment.eps_id, None)
        piece, first = fragment, 0
        if before is not None and before.t0 + before.rows == fragment.t0:
            piece = joined([before, fragment])
            first = before.rows - int(before.env_steps_total > random_until)
        if not fragment.ended:
            self._open[fragment.eps_id] = piece.cut(max(0, piece.rows - self.context), piece.rows)
        return piece, first


def laid_out(pieces: Sequence[tuple[Episode, int]]) -> tuple[SequenceBatch, Array]:
    """B pieces of different lengths as sequences of T rows, and which steps are to be learned from.

    Args:
        pieces: rows of one episode each, with the index of the first step that counts.

    Returns:
        The batch, padded at the end with first rows, and (B, T - 1) bool: step k leads from row k
        to row k + 1.
    """
    longest = max(piece.rows for piece, _ in pieces)
    shape = (len(pieces), longest + 1)  # the first column is the row before the sequence
    columns: dict[str, Array] = {
        name: np.zeros((*shape, *values.shape[1:]), values.dtype)
        for name, values in pieces[0][0].sampled.items()
    }
    is_first = np.ones(shape, np.bool_)
    valid = np.zeros((len(pieces), longest - 1), np.bool_)
    for index, (piece, first) in enumerate(pieces):
        for name, values in piece.sampled.items():
            columns[name][index, 1 : 1 + piece.rows] = values
        is_first[index, 2 : 1 + piece.rows] = False
        valid[index, first : piece.rows - 1] = True
    return arrived(columns, is_first), valid
