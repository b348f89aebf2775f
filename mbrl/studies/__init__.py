"""Studies: they measure parts of the world model, and nothing but the command line imports them.

What all of them share is in this folder: `bench.py` lists the studies and builds their commands,
`study.py` plans and runs one, `trial.py` is one run and its rules, `training.py` trains it for its
budget, `results.py` summarises, `tables.py` and `report.py` show. What a study measures is in a
folder of its own: arms, trial, training, measures, tables and figures, with `STUDY` in `study.py`.
"""
