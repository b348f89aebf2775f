"""bfloat16 is a wish: granted where the device computes in it, never imitated."""

import json

import pytest
import torch
from torch import nn

from agents import numerics
from mbrl.run import provenance

CPU = torch.device("cpu")


@pytest.fixture
def instructions(monkeypatch: pytest.MonkeyPatch):
    """Says which instructions the processor has."""

    def have(**known: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)

    return have


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False}, False),  # AMD Zen 3
        ({"avx2": True, "avx512_f": True}, False),  # Intel Skylake
        ({"avx512_f": True, "avx512_bf16": True}, True),  # AMD Zen 4
        ({"amx_bf16": True}, True),  # Intel Sapphire Rapids
        ({"neon": True, "bf16": False}, False),
        ({"neon": True, "bf16": True}, True),  # ARM Neoverse V1
    ],
)
def test_a_processor_has_bfloat16_only_by_its_own_instructions(instructions, known, expected):
    instructions(**known)
    assert numerics.has_bfloat16(CPU) is expected
    net, x = nn.Linear(2, 2), torch.ones(1, 2)
    for wanted in (False, True):
        dtype = torch.bfloat16 if wanted and expected else torch.float32
        assert numerics.precision(CPU, wanted) == dtype
        with numerics.autocast(CPU, wanted):
            assert net(x).dtype == dtype


def test_a_device_of_unknown_kind_computes_in_float32():
    meta = torch.device("meta")
    assert not numerics.has_bfloat16(meta)
    with numerics.autocast(meta, True):
        assert nn.Linear(2, 2, device=meta)(torch.ones(1, 2, device=meta)).dtype == torch.float32


def test_every_result_says_whether_its_machine_has_bfloat16(instructions):
    for has in (True, False):
        instructions(avx512_bf16=has)
        machine = json.loads(json.dumps(provenance.machine()))
        assert machine["bfloat16"] is has
        assert machine["vectors"] == torch.backends.cpu.get_cpu_capability()
