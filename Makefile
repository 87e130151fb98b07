# Each target stands alone on a machine with Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# All three backends of Keras. `make test-backends TORCH=torch==2.13.0` pins a build of PyTorch.
BACKENDS := .venv-backends
TORCH ?= torch
CORE := $(patsubst %,tests/test_%.py,binary callbacks distribution_cost distribution_guide distribution_jax \
	functional keras_contract labels layers losses metrics numerics posterior round_trips serving \
	tables targets)

export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-slow test-backends clean

demo: $(VENV)/installed
	$(BIN)/python examples/long_tailed_cifar.py --dataset digits --imbalance-ratio 50 --depth 8 \
		--epochs 60 --batch-size 32 --losses ce logit_adjusted gla gca --output results/demo.jsonl

test: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/installed
	$(BIN)/pytest -m slow --numprocesses 2 --dist loadfile

test-backends: $(BACKENDS)/installed
	for backend in tensorflow jax torch; do \
		KERAS_BACKEND=$$backend $(BACKENDS)/bin/pytest --numprocesses 2 $(CORE) || exit 1; \
	done

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[all,dev]"
	touch $@

$(BACKENDS)/installed: pyproject.toml
	$(PYTHON) -m venv $(BACKENDS)
	$(BACKENDS)/bin/pip install --quiet "$(TORCH)"
	$(BACKENDS)/bin/pip install --quiet --editable ".[all,jax,dev]"
	touch $@

clean:
	rm -rf $(VENV) $(BACKENDS) results
