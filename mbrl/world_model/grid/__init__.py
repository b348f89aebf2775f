"""The grid layout: code and state are maps, and nothing dense lies between frame and state.

What is learnt about an object at one place so holds at every place. Symbols beside those of
`mbrl.world_model`:

| symbol | what it counts |
| --- | --- |
| g, w | rows and columns of cells |
| S | numbers of a patch, the pixels of one cell: C * cell * cell |
| K | codes known so far |
| E | maps of an embedded code |
| D | maps of the state h |
"""
