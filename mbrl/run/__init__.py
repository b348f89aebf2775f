"""A run on disk: its folder, checkpoints, metrics, provenance, and what is shown while it works."""
