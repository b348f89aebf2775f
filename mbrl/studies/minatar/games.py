"""The five games of MinAtar, by their names in `mbrl bench fidelity`.

The prefix tells MinAtar's Breakout from Atari's. Results drop it.
"""

PREFIX = "minatar_"
MINATAR_GAMES = {
    f"{PREFIX}asterix": "MinAtar/Asterix-v1",
    f"{PREFIX}breakout": "MinAtar/Breakout-v1",
    f"{PREFIX}freeway": "MinAtar/Freeway-v1",
    f"{PREFIX}seaquest": "MinAtar/Seaquest-v1",
    f"{PREFIX}space_invaders": "MinAtar/SpaceInvaders-v1",
}
"""Environment ids, of the minimal sets of actions."""
