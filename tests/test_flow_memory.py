"""Training that recomputes instead of storing: the same gradients, in less memory."""

import os
import socket

import pytest
import torch
from flow_makers import FEATURES, SHARING, features_of, flow, image_of, numbers_of
from torch import nn

from mbrl.studies.flows.step import saved_bytes

MEMORY = ("plain", "checkpoint", "reversible")


def gradients(dtype, bf16=False, initialise=False, **settings):
    """Log-likelihoods, and gradients of all weights and of the features."""
    made = flow(features=FEATURES, dtype=dtype, **settings)
    if initialise:
        made.initialise(image_of(made, 64, seed=1), features_of(made, 64, seed=1))
    features = features_of(made).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        log_prob = made.log_prob(image_of(made), features, torch.Generator().manual_seed(0))
        assert log_prob.dtype == dtype
    log_prob.sum().backward()
    return [log_prob.detach(), features.grad, *(weight.grad for weight in made.parameters())]


def relative_difference(ones, others):
    return max(
        ((one - other).norm() / other.norm().clamp_min(1e-3)).item()
        for one, other in zip(ones, others, strict=True)
    )


OTHERS = ({}, {"variant": "realnvp"}, {"coupling": "additive", "dequantisation": "variational"})


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("sharing", SHARING)
def test_gradients_do_not_depend_on_what_is_stored(sharing, other, dtype, most):
    values = {"sharing": sharing, **other, "shake": 0.05}
    plain, *others = (gradients(dtype, memory=memory, **values) for memory in MEMORY)
    assert all(relative_difference(other, plain) < most for other in others)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("sharing", SHARING)
def test_gradients_agree_after_32_steps_of_a_normalised_flow(sharing, dtype, most):
    values = {"sharing": sharing, "steps": 32, "shake": 0.05, "initialise": True}
    plain = gradients(dtype, memory="plain", **values)
    assert relative_difference(gradients(dtype, memory="reversible", **values), plain) < most


def test_gradients_reach_all_weights_where_what_is_saved_is_copied():
    plain = gradients(torch.float64, memory="plain")
    with torch.autograd.graph.save_on_cpu():
        copied = gradients(torch.float64, memory="reversible")
    assert relative_difference(copied, plain) < 1e-9


@pytest.mark.parametrize("sharing", ["none", "level+film+proj"])
def test_networks_may_run_in_bfloat16_however_gradients_are_made(sharing):
    exact = gradients(torch.float32, sharing=sharing, shake=0.05)
    for memory in MEMORY:
        half = gradients(torch.float32, bf16=True, memory=memory, sharing=sharing, shake=0.05)
        assert all(torch.isfinite(grad).all() for grad in half)
        torch.testing.assert_close(half[0], exact[0], rtol=0.01, atol=0.5)
        assert relative_difference(half[1:2], exact[1:2]) < 0.1


def bytes_of(steps, features=0, **settings):
    made = flow((1, 16, 16), features=features, dtype=torch.float32, steps=steps, **settings)
    image, condition = image_of(made), features_of(made)
    return saved_bytes(lambda: made.log_prob(image, condition).sum(), made.parameters())


@pytest.mark.parametrize("features", [0, FEATURES])
@pytest.mark.parametrize("sharing", ["none", "level+film+proj"])
def test_reversible_training_saves_as_many_bytes_for_32_steps_as_for_4(sharing, features):
    values = {"sharing": sharing, "features": features}
    saved = [bytes_of(steps, memory="reversible", **values) for steps in (4, 8, 16, 32)]
    assert max(saved) <= 1.05 * min(saved)
    plain = [bytes_of(steps, memory="plain", **values) for steps in (4, 32)]
    per_step = [bytes_of(steps, memory="checkpoint", **values) for steps in (4, 32)]
    assert plain[1] > 5 * plain[0] and per_step[1] > 2 * per_step[0]
    assert saved[0] < per_step[0] < plain[0]


def test_saved_bytes_counts_each_storage_once_and_leaves_out_what_is_excluded():
    weight = torch.ones(10, requires_grad=True)
    x = torch.ones(10)

    def run():
        y = weight * x  # saves x (40 bytes) for the gradient of the weight, and not the weight
        return (y.exp() + y.exp()).sum()  # two results of 40 bytes

    assert saved_bytes(run) == 120
    assert saved_bytes(run, [x]) == 80

    def twice():
        z = weight.exp()  # saved by exp and, as two views, by the product: one storage
        return (z[:5] * z[5:]).sum()

    assert saved_bytes(twice, [weight]) == 40


# -- two ranks ------------------------------------------------------------------------------------


class Joint(nn.Module):
    """Something that makes features, and a flow that is trained with it."""

    def __init__(self, **settings):
        super().__init__()
        self.flow = flow(features=FEATURES, shake=0.05, **settings)
        self.encoder = nn.Linear(4, FEATURES).double()

    def forward(self, y, seen):
        return -self.flow.log_density(y, self.encoder(seen)).mean()


RANKED = [
    *(("level+film+proj", memory) for memory in MEMORY),
    *(("none", "reversible"), ("global", "reversible")),
]


def train_on_a_rank(rank, port):
    """Run both checks in a process of its own, one of two."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    gradients_are_of_the_whole_batch(rank)
    first_weights_are_equal(rank)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may abort a process that ends the usual way


def gradients_are_of_the_whole_batch(rank):
    generator = torch.Generator().manual_seed(3)
    y, seen = numbers_of(flow(), 4), torch.randn(4, 4, generator=generator, dtype=torch.float64)
    half = slice(2 * rank, 2 * rank + 2)
    for sharing, memory in RANKED:
        alone, joint = (Joint(memory=memory, sharing=sharing) for _ in range(2))
        alone(y, seen).backward()
        fired = []
        for weight in joint.parameters():
            weight.register_post_accumulate_grad_hook(fired.append)
        wrapped = nn.parallel.DistributedDataParallel(joint, broadcast_buffers=False)
        wrapped(y[half], seen[half]).backward()
        assert len(fired) == len({id(weight) for weight in fired}) == len(list(joint.parameters()))
        for one, other in zip(joint.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-9, rtol=1e-9)


def first_weights_are_equal(rank):
    first = Joint().flow
    image = image_of(first, 8)[4 * rank : 4 * rank + 4]
    first.initialise(image, features_of(first, 4), torch.Generator().manual_seed(rank))
    mine = torch.cat([weight.detach().flatten() for weight in first.parameters()])
    both = [torch.empty_like(mine), torch.empty_like(mine)]
    torch.distributed.all_gather(both, mine)
    assert torch.equal(*both)


def test_two_ranks_get_the_gradients_of_the_whole_batch_and_equal_first_weights():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(train_on_a_rank, (port,), nprocs=2)
