"""The flow study: what sharing coupling networks saves, and what it costs in bits.

`mbrl bench flow` trains the arms of `arms.py` on the same images for the same CPU time
(`train.py`), measures densities, samples and interpolations (`measure.py`), measures memory, step
times and latencies in processes of their own (`cost.py`), and reports. See `docs/flows.md`.
"""
