"""Random streams: they go on exactly, or, from another kind of device, all the same."""

import torch

from agents.numerics import restore_generator

FOREIGN = torch.tensor([7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0], dtype=torch.uint8)
"""As a graphics card's generator has it: a seed and an offset of eight bytes each."""


def drawn(state: torch.Tensor, began: int = 0) -> list[float]:
    generator = torch.Generator().manual_seed(began)
    restore_generator(generator, state)
    return torch.rand(3, generator=generator).tolist()


def test_a_stream_goes_on_exactly() -> None:
    generator = torch.Generator().manual_seed(5)
    torch.rand(2, generator=generator)
    state = generator.get_state()
    expected = torch.rand(3, generator=generator).tolist()
    assert drawn(state) == expected


def test_a_stream_of_another_device_begins_anew_and_follows_from_its_state_alone() -> None:
    other = FOREIGN.clone()
    other[8] += 1
    assert drawn(FOREIGN, began=1) == drawn(FOREIGN, began=2)
    assert drawn(FOREIGN) != drawn(other)
