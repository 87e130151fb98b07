# Each target stands alone on a machine with Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test clean

demo: $(VENV)/installed
	$(BIN)/python examples/long_tailed_cifar.py --dataset digits --imbalance-ratio 50 --depth 8 \
		--epochs 60 --batch-size 32 --losses ce logit_adjusted gla gca --output results/demo.jsonl

test: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pytest

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[all,dev]"
	touch $@

clean:
	rm -rf $(VENV) results
