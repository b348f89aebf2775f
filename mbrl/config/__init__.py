"""Settings: the whole config, YAML files and overrides, and what changed since a run was begun."""
