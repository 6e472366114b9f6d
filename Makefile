# Two commands do everything: `make demo` and `make test`. Both set the environment up first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-long check bench clean

# Everything at the versions that were tested together. Weights come later, by `visage models install`.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "Visage needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/python -m flows.demo $(if $(PHOTOS),--photos '$(PHOTOS)')

# Two workers of one thread each: on two cores, threads of two processes would only wait for each other.
test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m 'not long'

# What takes minutes a test: random kills, growth, training to a result.
test-long: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m long --timeout 3600

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.ready
	$(BIN)/python -m tests.benchmarks
	$(BIN)/python -m tests.benchmarks.flame

clean:
	rm -rf $(VENV) build
