# Every target works on a fresh machine with Python 3.11 or newer: it makes .venv first.
PYTHON ?= python3
# Where torch comes from. Empty: the default index, whatever build it offers. PyTorch's own index of
# small CPU builds can be named here: make install TORCH_INDEX=<url>
TORCH_INDEX ?=
TORCH := torch==2.13.0
TRITON := triton==3.6.0

BIN := .venv/bin
INSTALLED := .venv/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# wheels are unpacked; a source distribution would run its own code
export PIP_ONLY_BINARY := :all:

.PHONY: help install demo serve test verify lint format bench gpu clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED) ## make .venv with the package (editable) and everything the targets need

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Weft needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	@# torch first, on its own: what depends on it must not choose the build
	$(BIN)/pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@# a CUDA build has brought its triton; beside a CPU build xgrammar wants one on Linux x86-64
	@if [ "$$(uname -sm)" = "Linux x86_64" ] && ! $(BIN)/pip show --quiet triton 2>/dev/null; then \
		$(BIN)/pip install --quiet $(TRITON); fi
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

demo: install ## two tenants, their adapters, one base, one batch
	$(BIN)/weft demo

serve: install ## the same, and stay up until Ctrl-C
	$(BIN)/weft demo --serve

# the engine's part runs on images without the web's packages, so its tests run without them, too
ENGINE_TESTS := tests/adapters tests/engine tests/kernels
# a process for each core
PARALLEL := -n auto --maxprocesses 8 --dist loadfile

test: install ## the whole test suite
	@# more threads than cores would wait for each other
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p tests.without_web $(PARALLEL) $(ENGINE_TESTS)
	@# these wait for servers more than they compute
	$(BIN)/python -m pytest $(PARALLEL:auto=4) $(ENGINE_TESTS:%=--ignore=%)

lint: install ## formatting, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## rewrite files as `make lint` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

verify: install ## the long checks: every family in every way, 20,000 mutants of adapters, processes killed at every point on both databases, long series of kernels and of calls of the API, 5,000 requests under churn, 20 minutes of full load
	$(BIN)/python -m pytest -m verify
	$(BIN)/python -m benchmarks.churn --json-dir benchmarks/results
	$(BIN)/python -m benchmarks.soak --json-dir benchmarks/results

bench: install ## Weft against PEFT's mixed batches; writes benchmarks/results/
	$(BIN)/python -m benchmarks.peft_mixed_batch --json-dir benchmarks/results

# where there is a GPU, that image's own Python runs this from the sources: nothing is installed
SOURCE_ROOTS := platform:adapters:kernels:.
gpu: ## tests and benches on a CUDA device, in 9 minutes; PART=k/n: of all of it, in 8; without one, interpreted
	PYTHONPATH="$(SOURCE_ROOTS)" $(PYTHON) -m benchmarks.gpu $(if $(PART),--part $(PART)) \
		$(if $(PEERS),--peers $(PEERS)) $(if $(RESULTS),--out $(RESULTS))

clean: ## remove .venv and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
