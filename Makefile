# make run     sets everything up and runs some claims of a handful of papers (PAPERS="dagnn halonet", PAPERS=all)
# make test    sets everything up and runs the tests
# make check   what CI checks beside the tests
# make soak    the fault tests in full: 200 trials under kills of workers, coordinators and nodes, some minutes

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PAPERS ?= batchformer/v2_stream dagnn/depth@sbm halonet/halo_matters halonet/cost_scaling jamming/low_sjnr_curve \
	opposing_signals/toy_progressive_sharpening sortednet/hundred_sixty wide_deep_optimality/optimality
INSTALLED := $(VENV)/.installed
WORKERS ?= auto

.PHONY: run test check soak install clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "etude needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# A claim that fails or stays undecided (status 1 or 4) is an answer, not an error.
run: $(INSTALLED)
	@$(BIN)/etude run $(PAPERS); status=$$?; \
	if [ $$status -ne 0 ] && [ $$status -ne 1 ] && [ $$status -ne 4 ]; then exit $$status; fi
	@$(BIN)/etude report --output site

# The smoke trials of all papers, which the conformance tests run, take twice as long under the checker of types.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --jaxtyping-packages=etude,beartype.beartype \
		--ignore tests/test_conformance.py
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/test_conformance.py

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/etude registry --check
	$(BIN)/etude report --readme README.md --check
	$(BIN)/etude verdict --check

soak: $(INSTALLED)
	$(BIN)/python -m pytest -m slow -s tests/lab/test_faults.py tests/lab/test_engine_ray.py

clean:
	rm -rf $(VENV) site build dist .mypy_cache .ruff_cache .pytest_cache
