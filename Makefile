# The habits of the project. `make demo` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := $(VENV)/tools
# Tests run side by side, one per core; each then needs one thread of its own.
TEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n auto --dist worksteal

# Types are checked on the first; what the others lack, on them.
PLATFORMS := linux win32 darwin

.DEFAULT_GOAL := help
.PHONY: help install demo test check $(PLATFORMS:%=types-%) format bench docs site verify versions dist clean

help:  ## what can be made
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

# What is used is compiled when it is used, which is a small part of what is installed, and kept: every process would compile
# it again (8 s of one core) where the environment forbids that.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

# PyTorch's build for processors alone, which is a tenth of the other's size: asked for once, and not for long, on Linux
# where no GPU shows. Where its index does not answer, the ordinary one is taken. CPU_ONLY= : that at once.
CPU_ONLY ?= $(shell [ "$$(uname -s)" = Linux ] && [ ! -e /dev/nvidiactl ] && [ ! -e /dev/kfd ] && echo yes)
TORCH_CPU := https://download.pytorch.org/whl/cpu

$(VENV)/installed: requirements.lock requirements-torch.lock pyproject.toml
	@echo "Installing the locked dependencies into $(VENV), for a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --no-deps -r requirements.lock
	$(if $(CPU_ONLY),$(PIP) --timeout 10 --retries 0 --index-url $(TORCH_CPU) -r requirements-torch.lock 2> /dev/null || )$(PIP) -r requirements-torch.lock
	$(PIP) --no-deps --editable .
	touch $@

install: $(VENV)/installed  ## a virtual environment with the locked dependencies

demo: install  ## a real bilingual model out of a real multilingual one, in runs/demo
	$(BIN)/bistil demo --output runs/demo

test: install  ## the test suite
	$(TEST) tests

types-linux: install
	$(BIN)/mypy --platform linux

types-win32 types-darwin: types-%: install
	$(BIN)/mypy --platform $* --cache-dir .mypy_cache/$* --config-file .ci/platforms.ini

check: install  ## formatter, linter, direction of imports, type checker
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(MAKE) --jobs 2 --output-sync $(PLATFORMS:%=types-%)

format: install  ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install  ## the speed and memory ratios of docs/performance.md
	$(BIN)/python benchmarks/phase1_step.py
	$(BIN)/python benchmarks/task_step.py
	$(BIN)/python benchmarks/busy_machine.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/trim.py
	$(BIN)/python benchmarks/sparse.py
	$(BIN)/python benchmarks/predict.py

docs: install  ## the recipe reference, written from the code
	$(BIN)/python docs/make_recipe_reference.py

verify: install  ## bad inputs, fuzzing, kills, signals, full disks, long corpora, requests, the notebook (hours); SAMPLE=--sample: minutes
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python verify $(PARTS) $(SAMPLE)

versions: install  ## tests with the lowest and the newest versions allowed; TESTS=tests for all of them
	.ci/versions $(TESTS)

# Without bistil and what it needs: the site is made out of what is written, and built in an environment of its own.
$(TOOLS)/installed: requirements-tools.lock
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes --no-deps -r requirements-tools.lock
	touch $@

site: $(TOOLS)/installed  ## README, docs/ and the Python reference as pages, in build/site/; what is wrong with a link fails
	rm -rf build/site
	$(TOOLS)/bin/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env --conf-dir docs/site --doctree-dir build/doctrees . build/site

# The wheel is built out of the sdist. An earlier list of files would hide that one is missing.
dist: $(TOOLS)/installed  ## sdist and wheel in dist/, checked
	rm -rf dist src/*.egg-info
	$(TOOLS)/bin/python -m build --quiet
	$(TOOLS)/bin/twine check --strict dist/*
	$(TOOLS)/bin/python .ci/check_dist.py

clean:  ## remove what can be made again (not runs/)
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
