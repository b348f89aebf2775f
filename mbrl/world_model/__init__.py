"""The world model and its parts.

Symbols of shapes, in this package and in `mbrl.imagine`:

| symbol | what it counts |
| --- | --- |
| B | sequences of a batch |
| T | real steps of a sequence |
| N | rows side by side: environments, dreams, or the frames of a batch |
| R | rows of a batch that are decoded, at most B * T |
| K | imagined steps; classes of a variable of a categorical code |
| C, H, W | channels, height and width of an image |
| h, w, S | rows and columns of blocks of pixels; sub-pixels of a block |
| Z | numbers of the stochastic code z |
| G | variables of a categorical code, Z = G * K |
| D | numbers of the deterministic state h |
| F | features of a latent, F = Z + D in the flat layout; inside a decoder, maps of a layer |
| A | numbers of an action |
| V | intensity levels of a pixel; bins of the reward |
"""
