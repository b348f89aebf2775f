"""How fast PixelCNN draws frames with each sampler, in frames per second of CPU time.

    python -m benchmarks.samplers [--rounds 3] [--threads 1] [--updates 150]

The decoder's own sampler is `fixed_point`. Three others draw the same frames and are here to be
compared with it: `naive`, one pass over the whole frame for every sub-pixel; `cached`, pixel after
pixel, but nothing computed twice (Fast PixelCNN++, Ramachandran et al., arXiv:1704.06001); and
`wavefront`, the same with all blocks at once that have what they need. A block sees at most L + 1
blocks to its right in the rows above, so block (i, j) can be drawn in step j + (L + 2) i.

Batches of 16 frames of 64 x 64 pixels and 16 levels, from the two decoders of `DECODERS`: stacks on
blocks of 4 x 4 pixels, and on single pixels. Both have 3 layers and were trained for a few hundred
updates on frames of `reverie/Pong-v0`, given its state; how many passes `fixed_point` takes depends
on what is learned. All samplers get the same Gumbel noise and must draw the same frames; how many
pixels differ is in the JSON, and how many would differ in bfloat16.

The yardstick is `naive`, one pass over the whole frame for every pixel: all 4,096 passes are
measured, once. With single pixels that would take a quarter of an hour, so there 32 passes are
measured, and the row says so: every pass is the same work.

The minutes that `naive` takes cannot take turns with the fractions of a second of the others, so
the clock is the CPU time of the process, which other work on the machine hardly changes.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.measure import Row, alternate, options, report
from envs.pong import STATE, PongEnv
from mbrl.world_model.decoders.pixelcnn import (
    PixelCNNDecoder,
    Stacks,
    fixed_point,
    from_blocks,
)
from mbrl.world_model.decoders.settings import PixelCNNSettings

DECODERS = {
    "4 x 4 blocks": PixelCNNSettings(channels=32, layers=3, block=4),
    "single pixels": PixelCNNSettings(channels=16, layers=3, block=1),
}
BATCH, SIZE, LEVELS = 16, 64, 16
FEW_PASSES = 32
FAST = ("fixed_point", "cached", "wavefront")
PLACES = [STATE.index(name) for name in ("ball_row", "ball_column", "own_row", "other_row")]


def frames(count: int) -> tuple[Tensor, Tensor]:
    """Frames of random play.

    Returns:
        Levels (count, 1, 64, 64), and features (count, 4 * 64 + 1): each object's place, one-hot,
        and whether there is a ball.
    """
    env, rng = PongEnv(size=SIZE), np.random.default_rng(0)
    images: list[NDArray[np.uint8]] = []
    states: list[NDArray[np.uint8]] = []
    obs, info = env.reset(seed=0)
    for _ in range(count):
        images.append(obs)
        states.append(info["ram"])
        obs, _, over, _, info = env.step(int(rng.integers(3)))
        if over:
            obs, info = env.reset()
    state = torch.as_tensor(np.stack(states)).long()
    places = torch.nn.functional.one_hot(state[:, PLACES], SIZE).flatten(1)
    visible = state[:, STATE.index("ball_visible")].unsqueeze(1)
    levels = torch.as_tensor(np.stack(images)).permute(0, 3, 1, 2) // (256 // LEVELS)
    return levels, torch.cat([places, visible], 1).float()


def trained(
    settings: PixelCNNSettings, images: Tensor, features: Tensor, updates: int
) -> PixelCNNDecoder:
    """A decoder after some updates."""
    torch.manual_seed(0)
    decoder = PixelCNNDecoder((1, SIZE, SIZE), LEVELS, features.shape[1], settings)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=2e-3)
    for _ in range(updates):
        chosen = torch.randint(len(images), (BATCH,))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = -decoder.log_prob(images[chosen], features[chosen]).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return decoder.eval()


def naive(decoder: PixelCNNDecoder, features: Tensor, noise: Tensor) -> Tensor:
    """One full pass for every sub-pixel."""
    conditions = decoder.conditions(features)
    blocks = torch.zeros(noise.shape[:-1], dtype=torch.uint8)
    for row, column, s in np.ndindex(*blocks.shape[1:]):
        scores = decoder.logits(blocks, conditions) + noise
        blocks[:, row, column, s] = scores[:, row, column, s].argmax(-1).to(torch.uint8)
    return blocks


def cached(decoder: PixelCNNDecoder, features: Tensor, noise: Tensor) -> Tensor:
    """Pixel after pixel, nothing computed twice."""
    stacks = Stacks(decoder, features, noise)
    for row in stacks.cells.unbind(1):  # (N, w)
        stacks.enter_down(row.flatten())
        for index in range(len(stacks.layers)):
            stacks.down(index, row.flatten())
        for cells in row.unbind(1):
            stacks.draw(cells)
    return stacks.levels.view(*stacks.cells.shape, -1)


def wavefront(decoder: PixelCNNDecoder, features: Tensor, noise: Tensor) -> Tensor:
    """All blocks whose field is known at the same time, along diagonals."""
    stacks = Stacks(decoder, features, noise)
    layers, (_, height, width) = len(stacks.layers), stacks.cells.shape
    rows = torch.arange(height)

    def wave(step: int) -> Tensor:
        """Cells of the blocks (i, j) with j + (L + 2) i = step."""
        first = max(0, -(-(step - width + 1) // (layers + 2)))
        chosen = rows[first : step // (layers + 2) + 1]
        return stacks.cells[:, chosen, step - (layers + 2) * chosen].flatten()

    for step in range(-layers, width + (layers + 2) * (height - 1)):
        stacks.enter_down(wave(step + layers))  # the vertical stack runs ahead: it looks right
        for index in range(layers):
            stacks.down(index, wave(step + layers - 1 - index))
        stacks.draw(wave(step))
    return stacks.levels.view(*stacks.cells.shape, -1)


SAMPLERS: dict[str, Callable[[PixelCNNDecoder, Tensor, Tensor], Tensor]] = {
    "naive": naive,
    "cached": cached,
    "wavefront": wavefront,
    "fixed_point": lambda *given: fixed_point(*given)[0],
}


@dataclass(frozen=True)
class Drawn:
    """What one sampler drew."""

    blocks: Tensor
    seconds: float


def draw(decoder: PixelCNNDecoder, sampler: str, features: Tensor, noise: Tensor) -> Drawn:
    """Draw one batch, and take the CPU time."""
    start = time.process_time()
    with torch.no_grad():
        blocks = SAMPLERS[sampler](decoder, features, noise)
    return Drawn(blocks, time.process_time() - start)


@torch.no_grad()
def seconds_of_passes(decoder: PixelCNNDecoder, features: Tensor, noise: Tensor) -> float:
    """CPU seconds that `naive` takes, from a few of its passes."""
    conditions = decoder.conditions(features)
    blocks = torch.zeros(noise.shape[:-1], dtype=torch.uint8)
    start = time.process_time()
    for _ in range(FEW_PASSES):
        (decoder.logits(blocks, conditions) + noise).argmax(-1)
    return (time.process_time() - start) / FEW_PASSES * SIZE * SIZE


@torch.no_grad()
def differing_in_bf16(
    decoder: PixelCNNDecoder, features: Tensor, noise: Tensor, blocks: Tensor
) -> int:
    """Pixels that would be others if their logits were computed in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = decoder.logits(blocks, decoder.conditions(features))
    return int(((logits + noise).argmax(-1) != blocks).sum())


def measure(
    name: str, given: argparse.Namespace, images: Tensor, features: Tensor
) -> tuple[list[Row], dict[str, Any]]:
    """All samplers on one decoder."""
    decoder = trained(DECODERS[name], images, features, given.updates)
    condition = features[torch.randint(len(features), (BATCH,))]
    noise = decoder.gumbel(BATCH, condition.device, torch.Generator().manual_seed(0))
    whole = decoder.block > 1
    reference = draw(decoder, "naive" if whole else "cached", condition, noise)
    slow = reference.seconds if whole else seconds_of_passes(decoder, condition, noise)
    differing = {
        sampler: int((draw(decoder, sampler, condition, noise).blocks != reference.blocks).sum())
        for sampler in FAST
    }

    def contest() -> dict[str, float]:
        return {one: BATCH / draw(decoder, one, condition, noise).seconds for one in FAST}

    speeds = alternate([contest], given.rounds)
    yardstick = f"{name}, naive" + ("" if whole else f", from {FEW_PASSES} of its passes")
    rows = [Row(what=yardstick, value=BATCH / slow, unit="frames/s")]
    for sampler in FAST:
        value = speeds.median(sampler)
        rows.append(
            Row(
                what=f"{name}, {sampler}",
                value=value,
                unit="frames/s",
                against=yardstick,
                against_value=BATCH / slow,
                ratio=value * slow / BATCH,
            )
        )
    drawn = from_blocks(reference.blocks, 1, decoder.block)
    with torch.no_grad():
        bits = -decoder.log_prob(drawn, condition).mean() / np.log(2)
        passes = fixed_point(decoder, condition, noise)[1]
    return rows, {
        "settings": DECODERS[name].model_dump(),
        "naive_measured_whole": whole,
        "ms_per_frame": {row.what: 1e3 / row.value for row in rows},
        "blocks_drawn_in_each_pass_of_fixed_point": passes,
        "bits_per_drawn_frame": float(bits),
        "differing_pixels": differing,
        "compared_to": "naive" if whole else "cached",
        "differing_pixels_in_bf16": differing_in_bf16(decoder, condition, noise, reference.blocks),
        "pixels": BATCH * SIZE * SIZE,
        "rounds": speeds.rounds,
    }


def main() -> None:
    """Measure, print with ratios, and write the numbers as JSON."""
    parser = options(__doc__, "results/benchmarks/samplers.json", rounds=3)
    parser.add_argument("--updates", type=int, default=150, help="of each decoder, before sampling")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    images, features = frames(4000)
    rows: list[Row] = []
    details: dict[str, Any] = {"threads": given.threads, "updates": given.updates, "batch": BATCH}
    for name in DECODERS:
        measured, details[name] = measure(name, given, images, features)
        rows += measured
        print(
            *(f"{row.what}: {row.value:.3g} {row.unit}" for row in measured), sep="\n", flush=True
        )
    report("samplers", __doc__, given, rows, details)


if __name__ == "__main__":
    main()
