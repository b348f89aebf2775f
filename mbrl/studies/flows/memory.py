"""Bytes that training keeps for the backward pass, counted instead of measured.

In: a computation that ends in a loss. Out: how many bytes autograd holds on to when it is done,
each storage counted once, without what is there anyway (weights, inputs). The count is the same on
every machine and every day, which resident memory is not; it says nothing of what is allocated for
a moment in between.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_bytes(run: Callable[[], Tensor], exclude: Iterable[Tensor] = ()) -> int:
    """Bytes that the graph of `run()` keeps for its gradient.

    Args:
        run: computes a loss, with a graph; the graph is let go afterwards, no gradient is taken.
        exclude: tensors whose storages do not count: the parameters, and inputs if wanted.

    Returns:
        The sum over distinct storages, whole ones, even if only a view of one is kept.

    Raises:
        ValueError: the result has no graph, so that nothing could have been kept.
    """
    known = {_address(tensor) for tensor in exclude}
    sizes: dict[int, int] = {}
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        address = _address(tensor)
        if address not in known and address not in sizes:
            sizes[address] = tensor.untyped_storage().nbytes()
            held.append(tensor.detach())  # an address must not be given to another storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        loss = run()
    if loss.grad_fn is None:
        raise ValueError("saved_bytes: expected a result with a graph, got one without")
    return sum(sizes.values())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
