# Everything runs in .venv, made here with the standard library's venv and pip.
# Another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ISA_TESTS := $(addprefix tests/,parity/test_criterion.py parity/test_models.py parity/test_tables.py unit/models \
	unit/losses unit/ops unit/distillation/test_tap.py behavior/test_arrangement.py behavior/test_ranks.py \
	behavior/test_resume.py)

.PHONY: demo test isa check bench docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-demo  ## train, distil, evaluate and export on made-up shapes; results in runs/demo
	$(BIN)/rtdetrv4 demo --out runs/demo

test: $(VENV)/.installed-dev  ## every test
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist worksteal

# Which kernels run depends on the processor; these settings stand in for older ones.
isa: $(VENV)/.installed-dev  ## tests that compare numbers, with the kernels of other processors
	@for isa in SSE41:default AVX2:avx2; do for threads in 1 2; do \
		echo "== $$isa, threads: $$threads"; \
		ONEDNN_MAX_CPU_ISA=$${isa%:*} ATEN_CPU_CAPABILITY=$${isa#*:} RTDETRV4_TEST_THREADS=$$threads \
			$(BIN)/pytest $(ISA_TESTS) || exit 1; done; done

check: $(VENV)/.installed-dev  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Show that they run, without measuring: make bench BENCH=--quick
bench: $(VENV)/.installed-dev  ## every benchmark, then docs/benchmarks.md; wants a quiet machine for a quarter of an hour
	@for script in $(filter-out benchmarks/_% benchmarks/report.py,$(wildcard benchmarks/*.py)) benchmarks/report.py; do \
		echo "== $$script"; $(BIN)/python "$$script" $(BENCH) || exit 1; done

docs: $(VENV)/.installed-docs  ## the documentation as a site, in site/
	$(BIN)/mkdocs build --strict

clean:  ## remove the environment, caches and built files; runs/ stays
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per extra: an install is repeated only when pyproject.toml changes.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
