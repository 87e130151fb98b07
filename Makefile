# Each target stands alone on a machine with Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# With JAX and PyTorch. `make test-backends TORCH=torch==2.13.0` pins a build of PyTorch.
BACKENDS := .venv-backends
TORCH ?= torch
# The site; its tests, the tutorials and recipes.
DOCS := .venv-docs
RECIPES := .venv-recipes
# The oldest versions that pyproject.toml admits, and the wheel with TensorFlow alone.
LOWEST := .venv-lowest
WHEEL := .venv-wheel
# The queue of long trainings: its clone, its environment, backups and weights. `make clean` leaves it alone.
LONG ?= .long
CORE := $(patsubst %,tests/test_%.py,binary calibration callbacks device_loop distribution_cost distribution_guide \
	distribution_jax functional keras_contract labels layers loops losses metrics numerics pairs \
	posterior round_trips serving tables targets)

export TF_CPP_MIN_LOG_LEVEL ?= 2

DEMO := examples/long_tailed_cifar.py --dataset digits --imbalance-ratio 50 --depth 8 --epochs 60 \
	--batch-size 32 --losses ce gla gca --seeds 0 1 2

.PHONY: demo test test-slow test-docs test-backends test-lowest test-wheel docs build clean long quiet

demo: $(VENV)/installed
	$(BIN)/python $(DEMO) --output results/demo.jsonl

# The picture of the first page: the demo's, of the committed run.
docs/img/demo.png: benchmarks/results/demo.jsonl
	$(BIN)/python $(DEMO) --output $<
	mv $(<:.jsonl=.png) $@

test: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -m "not slow and not docs" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/installed
	$(BIN)/pytest -m slow --numprocesses 2 --dist loadfile

test-docs: $(RECIPES)/installed
	$(RECIPES)/bin/pytest -m docs --numprocesses 2 tests/test_recipes.py tests/test_tutorials.py \
		tests/test_site.py

# Most of JAX's time goes to compiling: LLVM's optimisations are off, those of XLA itself stay.
test-backends: export XLA_FLAGS += --xla_backend_optimization_level=0
test-backends: $(BACKENDS)/installed
	for backend in jax torch; do \
		KERAS_BACKEND=$$backend $(BACKENDS)/bin/pytest --numprocesses 2 $(CORE) || exit 1; \
	done

# The site, in `site/`. A warning is an error: a broken link, a name that does not exist.
docs: $(DOCS)/installed
	$(DOCS)/bin/mkdocs build --strict

# Old releases warn of newer ones of what they stand on: here warnings are no errors.
test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/pytest -W default -m "not slow" --numprocesses 2 \
		$(sort $(CORE) $(wildcard tests/test_tuning*.py tests/test_serving*.py))

test-wheel: build
	$(PYTHON) -m venv --clear $(WHEEL)
	$(WHEEL)/bin/pip install --quiet "$$(echo dist/*.whl)[tensorflow]"
	$(WHEEL)/bin/python -I tests/wheel.py

build:
	$(PYTHON) -m venv --clear $(WHEEL)
	$(WHEEL)/bin/pip install --quiet build twine
	rm -rf dist
	$(WHEEL)/bin/python -m build
	$(WHEEL)/bin/twine check --strict dist/*

$(VENV)/installed: EXTRAS := all,dev
$(RECIPES)/installed: EXTRAS := all,dev,docs,recipes
$(DOCS)/installed: EXTRAS := docs
$(VENV)/installed $(RECIPES)/installed $(DOCS)/installed: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

$(BACKENDS)/installed: pyproject.toml
	$(PYTHON) -m venv $(BACKENDS)
	$(BACKENDS)/bin/pip install --quiet "$(TORCH)"
	$(BACKENDS)/bin/pip install --quiet --editable ".[all,jax,dev]"
	touch $@

$(LOWEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet uv
	$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct --extra all pyproject.toml \
		--python $(LOWEST) --output-file $(LOWEST)/lowest.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST) --constraint $(LOWEST)/lowest.txt \
		--editable ".[all,dev]"
	touch $@

# The trainings run from a clone of the commit at which the queue was first started, so that work on the
# code does not end them. To move them to the latest commit, delete $(LONG)/installed.
long: $(LONG)/installed
	PYTHONPATH=$(abspath $(LONG)/source) nice -n 19 $(LONG)/venv/bin/python \
		$(LONG)/source/benchmarks/long_trainings.py --folder $(LONG) \
		--output benchmarks/results/long.jsonl

# While a command is timed, the queue stands still: make quiet CMD="...".
quiet:
	@$(PYTHON) benchmarks/quiet.py $(LONG) "$$CMD"

$(LONG)/installed:
	rm -rf $(LONG)/source
	git clone --quiet . $(LONG)/source
	$(PYTHON) -m venv $(LONG)/venv
	$(LONG)/venv/bin/pip install --quiet --editable "$(LONG)/source[all]"
	touch $@

clean:
	rm -rf $(VENV) $(BACKENDS) $(DOCS) $(RECIPES) $(LOWEST) $(WHEEL) dist results site
