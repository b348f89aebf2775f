"""The vectors layout: the code is the observation itself, numbers and categories.

Symbols beside those of `mbrl.world_model`:

| symbol | what it counts |
| --- | --- |
| M | numbers of an observation |
| Z | entries of a code: the numbers, and one for each category |
| I | inputs of an observation: the numbers, and one for each value of each category |
| E | members of the ensemble |
| K | components of a member's mixture |
| W | width of a hidden layer |
"""
