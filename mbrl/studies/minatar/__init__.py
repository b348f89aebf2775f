"""Does a world model generalise, or know its replay by heart? `bench fidelity` on MinAtar's games.

Episodes of one policy go in, and a few thousand env steps of training. F1 of every channel on new
episodes comes out, beside the same on the training episodes, a copy of the last frame, and what the
cloned real game allows. No part of training or acting imports this room.
"""
