# Two commands do everything: `make demo` and `make test`. Both set the environment up first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CHECKS := lint layers types

.PHONY: demo test test-long check $(CHECKS) bench clean

# Everything at the versions that were tested together. Weights come later, by `visage models install`.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "Visage needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib flows infra tasks models || true  # on all processors, unlike pip
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/python -m flows.demo $(if $(PHOTOS),--photos '$(PHOTOS)')

# Two workers of one thread each: on two cores, threads of two processes would only wait for each other.
test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m 'not long'

# What takes minutes a test: random kills, growth, training to a result; and ten times the examples of every property.
test-long: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m 'long or hypothesis' --hypothesis-profile thorough --timeout 3600

check: $(VENV)/.ready
	$(MAKE) --no-print-directory -j 2 $(CHECKS)

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

layers:
	$(BIN)/lint-imports --no-logo

types:
	$(BIN)/mypy

bench: $(VENV)/.ready
	$(BIN)/python -m tests.benchmarks
	$(BIN)/python -m tests.benchmarks.flame

clean:
	rm -rf $(VENV) build
