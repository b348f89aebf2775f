"""Where the information about a frame is: in the code, in the state, or in the pixels' likelihood.

A model with a calibrated likelihood describes a frame in two parts: the code, at the price of
KL(q(z | x) || p(z | h)) nats (the *rate*), and the pixels, at -log p(x | z, h) nats (the
*distortion*). The *shuffle gain* is what another frame's code would cost: a decoder that ignores
its code loses nothing.

A state that learnt from short sequences may fail on long ones, which acting asks of it: *ageing* is
what a frame costs more if the model has followed some 250 rows before it than 8 to 15.

Decoders with squared error have no calibrated likelihood; their distortion is the summed squared
error of intensities in [0, 1], under names of its own and never turned into bits.

Source: rate and distortion as in Alemi et al., "Fixing a Broken ELBO", arXiv:1711.00464; the
shuffled code as a test of use, following PixelVAE (arXiv:1611.05013) and VLAE (arXiv:1611.02731).
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from mbrl.studies.fidelity.follow import Followed, filtered, rng_of, stream
from mbrl.studies.fidelity.frames import Frames
from mbrl.world_model.latent import Latent, Observed
from mbrl.world_model.model import WorldModel

BATCH = 64
OLD, YOUNG = 256, 16  # rows of the windows in which ageing is measured; arms learn from 16 and more
LAST, EVERY, WINDOWS = 8, 2, 64  # measured: every second of the last 8 rows of 64 windows


def is_calibrated(model: WorldModel) -> bool:
    """Whether the decoder's likelihood is one: a distribution over pixels, not a squared error."""
    return getattr(model.settings.decoder, "likelihood", "categorical") != "mse"


def distortions(
    model: WorldModel, obs: NDArray[np.uint8], latent: Latent, seed: int
) -> NDArray[np.float64]:
    """What `WorldModel.frame_nats` gives for frames (N, H, W, C), a batch at a time: (N,).

    `seed` is that of the noise in a flow's bound: the same one compares codes on the same noise.
    """
    generator = stream(seed, "information/noise", model.device)
    parts = []
    for i in range(0, len(obs), BATCH):
        here = latent[i : i + BATCH].to(model.device)
        images = torch.as_tensor(obs[i : i + BATCH], device=model.device)
        parts.append(model.frame_nats(images, here, generator).double().cpu().numpy())
    return np.concatenate(parts)


def strangers(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """For each of n rows another one, drawn at random: a permutation without fixed points."""
    order = rng.permutation(n)
    partner = np.empty(n, np.int64)
    partner[order] = np.roll(order, 1)
    return partner


def information(
    model: WorldModel, frames: Frames, followed: Followed, seed: int
) -> dict[str, float | None]:
    """Rate, distortion and shuffle gains, means over at least two followed rows of `frames`.

    Returns:
        `nats_per_frame`: of the code, against the dynamics' prior.
        `nats_to_static_prior`: of the code, against a plain VAE's prior.
        `bits_per_frame`: of the pixels; `bits_per_pixel` divides it by H W C; `bits_in_all` adds
            the code's nats as bits: the description length of a frame given the past.
        `shuffle_gain_bits`: bits(x | another frame's z, own h) - bits(x | own z, h).
        `shuffle_hidden_gain_bits`: the same with another frame's h and the own z; 0 where the
            decoder does not see h. `shuffle_both_gain_bits`: both from one other frame.
        For squared error all bits are None; instead `squared_error` per frame, and the gains as
        `shuffle_gain_squared_error` and so on. For a likelihood those are None.
    """
    obs, latent = np.asarray(frames.obs[followed.rows], np.uint8), followed.latent
    pairs = []
    for i in range(0, len(obs), BATCH):
        posterior = followed.posterior[i : i + BATCH].to(model.device)
        here = latent[i : i + BATCH].to(model.device)
        pairs.append(model.rates(Observed(here, posterior)))
    nats, static = (float(torch.cat(part).mean()) for part in zip(*pairs, strict=True))
    other = torch.as_tensor(strangers(len(obs), rng_of(seed, "information/shuffle")))
    wrong = {
        "shuffle": Latent(latent.hidden, latent.code[other]),
        "shuffle_hidden": Latent(latent.hidden[other], latent.code),
        "shuffle_both": latent[other],
    }
    own = distortions(model, obs, latent, seed).mean()
    report: dict[str, float | None] = {"nats_per_frame": nats, "nats_to_static_prior": static}
    report |= _in_units(model, "bits_per_frame", "squared_error", own)
    bits = report["bits_per_frame"]
    report["bits_per_pixel"] = None if bits is None else bits / obs[0].size
    report["bits_in_all"] = None if bits is None else bits + nats / math.log(2)
    for name, one in wrong.items():
        gain = distortions(model, obs, one, seed).mean() - own
        report |= _in_units(model, f"{name}_gain_bits", f"{name}_gain_squared_error", gain)
    return report


def _in_units(
    model: WorldModel, bits: str, error: str, distortion: float
) -> dict[str, float | None]:
    """A distortion as bits or, where the decoder has no likelihood, as a squared error."""
    if is_calibrated(model):
        return {bits: float(distortion) / math.log(2), error: None}
    return {bits: None, error: float(distortion)}


def ageing(model: WorldModel, frames: Frames, seed: int) -> dict[str, float | None]:
    """What a frame costs more when the model has followed its episode for long.

    `aged_bits`: of the pixels, bits(x | z, h) of the last `LAST` rows of windows of `OLD` rows,
    less those of the same rows at the end of windows of `YOUNG`; `aged_squared_error` in its place
    for squared error. Both are None if no episode is that long.
    """
    if frames.longest < OLD:
        return {"aged_bits": None, "aged_squared_error": None}
    ends = frames.windows(OLD, WINDOWS, rng_of(seed, "information/ageing")) + OLD
    rows = (ends[:, None] - LAST + np.arange(0, LAST, EVERY)).ravel()
    obs = np.asarray(frames.obs[rows], np.uint8)
    nats = []
    for length in (OLD, YOUNG):
        codes = stream(seed, "information/ageing/codes", model.device)
        latent = filtered(model, frames, ends - length, length, codes).latent
        nats.append(distortions(model, obs, latent[:, -LAST::EVERY].flatten(), seed).mean())
    return _in_units(model, "aged_bits", "aged_squared_error", nats[0] - nats[1])
