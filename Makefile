# Everything runs in .venv, which is created here with the standard library's venv and pip.
# To use another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ISA_TESTS := $(addprefix tests/,parity/test_criterion.py parity/test_models.py parity/test_tables.py unit/models \
	unit/losses unit/ops unit/distillation/test_tap.py behavior/test_arrangement.py behavior/test_ranks.py \
	behavior/test_resume.py)

.PHONY: demo test isa gpu check fuzz audit bench docs dist try-wheel sbom clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-demo  ## distill, evaluate and export a detector of synthetic shapes; results in runs/demo
	$(BIN)/rtdetrv4 demo --out runs/demo

test: $(VENV)/.installed-dev  ## run every test
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist worksteal

# The processor decides which kernels run; these settings select those of older ones.
isa: $(VENV)/.installed-dev  ## run the tests that compare numbers with the kernels of other processors
	@for isa in SSE41:default AVX2:avx2; do for threads in 1 2; do \
		echo "== $$isa, threads: $$threads"; \
		ONEDNN_MAX_CPU_ISA=$${isa%:*} ATEN_CPU_CAPABILITY=$${isa#*:} RTDETRV4_TEST_THREADS=$$threads \
			$(BIN)/pytest $(ISA_TESTS) || exit 1; done; done

gpu: $(VENV)/.installed-dev  ## run the tests that need a GPU of NVIDIA
	RTDETRV4_TEST_GPU=1 $(BIN)/pytest tests/gpu

check: style types layers  ## check style, types and import layers; with -j2, at once

style: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: types-inside types-outside

types-inside: $(VENV)/.installed-dev
	$(BIN)/pyright

# Whether users' type checkers know every public name; it finds the Python of PATH only.
types-outside: $(VENV)/.installed-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" pyright --verifytypes rtdetrv4 --ignoreexternal

layers: $(VENV)/.installed-dev
	$(BIN)/lint-imports

# To only show that they run: make bench BENCH=--quick
bench: $(VENV)/.installed-dev  ## run every benchmark and update docs/benchmarks.md; needs an idle machine for an hour
	@for script in $(filter-out benchmarks/_% benchmarks/report.py,$(wildcard benchmarks/*.py)) benchmarks/report.py; do \
		echo "== $$script"; $(BIN)/python "$$script" $(BENCH) || exit 1; done

docs: $(VENV)/.installed-docs  ## build the documentation in site/
	$(BIN)/mkdocs build --strict

# With a tag, such as TAG=v0.2.0, it must be that of this version.
dist: $(BIN)/python  ## build wheel and sdist in dist/, and check them
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build twine
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	@if [ -n "$(TAG)" ]; then ls dist/rtdetrv4-$(patsubst v%,%,$(TAG)).tar.gz > /dev/null \
		&& grep -q "^## \[$(patsubst v%,%,$(TAG))\]" CHANGELOG.md \
		|| { echo "$(TAG) is not the version of pyproject.toml and CHANGELOG.md"; exit 1; }; fi

# Fresh environments, in which nothing is installed but the wheel with its extras.
try-wheel: | dist/  ## install the wheel as a user would, in each size, and use it
	@for extras in "[train,export]" "[torch]" "" "[serve]"; do \
		echo "== rtdetrv4$$extras"; rm -rf build/try && $(PYTHON) -m venv build/try \
		&& build/try/bin/python -m pip install --quiet --disable-pip-version-check "$$(ls $(CURDIR)/dist/*.whl)$$extras" \
		&& (cd build && try/bin/python $(CURDIR)/tests/try_wheel.py "$$extras" try.onnx) || exit 1; done; \
	rm -rf build/try build/try.onnx*

dist/:
	$(MAKE) dist

sbom: $(VENV)/.installed-all  ## list what the full installation consists of, in dist/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom
	mkdir -p dist
	$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-file dist/rtdetrv4.cdx.json

clean:  ## remove the environment, caches and build products; keep runs/
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per extra, so that it is installed again only when pyproject.toml changes.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
