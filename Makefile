# Everything a fresh machine needs, with only python3 (3.11 or newer) and make installed.
#
#   make quickstart   install into .venv, then the main job: a dream agent against PPO on a real game
#   make test         install the developer tools, then lint, types and tests
#   make test-gpu     what only a GPU can show, where there is one
#   make docs         the documentation as a site in site/, with its links checked
#   make peers        speed and score beside RLlib, SheepRL and TorchRL, on one core: about 3 hours
#   make fidelity     the study of decoders on Pong, all arms, two runs side by side: about 8 hours
#   make flows        the study of flows on Pong, all arms, two runs side by side: about 4 hours
#   make gpu-wheels   all dependencies in pieces, to take to a GPU machine without a network
#   make gpu-study    there: install them, look at the GPU, train three Atari games; goes on when repeated
#
# PYTHON chooses the interpreter:           make test PYTHON=python3.12
# TORCH_ARGS goes to the install of torch:  make test TORCH_ARGS="--index-url ..."
# Without it pip takes the default build, on Linux the one with CUDA, which also runs without a GPU.

PYTHON ?= python3
TORCH_ARGS ?=
GPU_WHEELS_ARGS ?=
GPU_STUDY_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINNED := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-gpu lint format docs bench peers fidelity flows gpu-wheels gpu-study clean

help:
	@sed -n 's/^#   //p' Makefile

quickstart: $(VENV)/.installed
	$(BIN)/mbrl compare quickstart --agents dream,ppo --seeds 1

test: lint
	$(BIN)/python -m pytest -m "not slow and not gpu and not bench"

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	$(BIN)/python docs/generate.py --check
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.installed-dev
	@set -e; for name in replay world_model imagine samplers collect; do \
	  $(BIN)/python -m benchmarks.$$name; done; $(BIN)/python -m benchmarks.table

peers: $(VENV)/.installed
	$(BIN)/python -m benchmarks.peers --pip-args="$(TORCH_ARGS)"
	$(BIN)/python -m benchmarks.table

fidelity: $(VENV)/.installed
	$(BIN)/mbrl bench fidelity pong --arms all --jobs 2

flows: $(VENV)/.installed
	$(BIN)/mbrl bench flow pong --size 32 --arms all --jobs 2

# Both with the interpreter as it is: on the rented machine it is the one that has torch.
gpu-wheels:
	$(PYTHON) -m deploy.gpu_study wheels $(GPU_WHEELS_ARGS)

gpu-study:
	$(PYTHON) -m deploy.gpu_study run $(GPU_STUDY_ARGS)

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .mypy_cache
	find mbrl agents envs tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

# Stamps: an install step runs again only when what it was made from has changed.

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Reverie needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# torch comes first and alone: an installed build, whichever it is, then satisfies everything else.
$(VENV)/.torch: $(VENV)/.created constraints.txt
	$(PIP) install $(TORCH_ARGS) --constraint constraints.txt torch
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(PINNED)
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch $(PINNED)
	$(PIP) install --constraint constraints.txt --editable ".[dev,box2d]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/.installed $(PINNED)
	$(PIP) install --constraint constraints.txt --editable ".[docs]"
	@touch $@
