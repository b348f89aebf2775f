"""How well a world model keeps a game's small objects, and what its code knows: `bench fidelity`.

Frames of a game with the console's memory as labels go in; recall of objects, probes, rates, drift
and costs of trained world models come out. No part of training or acting imports this room.
"""
