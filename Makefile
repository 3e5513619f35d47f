# make demo    set up, then embed the docstrings of Python's standard library and ask them questions
# make test    set up, then run the tests
# make lint    ruff and mypy
# make setup   the set-up alone
# make bench   c2v bench of the default model (two minutes)
# make peers   the peers and the methods on decoders of 130 M and 0.5 B (half an hour on two cores),
#              into benchmarks/results; llama.cpp takes part where it is installed
# make bench-check
#              whether a change made the engine do more work, or slower than others in the same run
# make figures fill in the measured figures of README and docs from the result files; CHECK=1 only
#              says which are stale or typed by hand
# make aot     compile every Triton kernel for sm_80, sm_90 and sm_100; no GPU is needed
# make gpu OUT=folder
#              on a machine with a CUDA GPU and its own torch: build in place, test, measure, and
#              write results to the folder; nothing is installed
#
# PYTHON=python3.12 chooses the interpreter, VENV=dir the environment, TORCH=... what pip is asked for
# where the environment has no torch yet.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
STAMP := $(VENV)/.c2v-setup
BUILT_FROM := setup.py pyproject.toml $(wildcard csrc/*)

QUESTIONS := "parse a date from a string" "compress bytes" "run a command and read its output" \
	"sort a list in place" "how do I send an email" "make a temporary file that deletes itself"

SIZES := --shape llama-130m --shape qwen2.5-0.5b

OUT ?= benchmarks/results/gpu

.PHONY: setup demo test lint bench bench-check peers figures aot gpu clean

setup: $(STAMP)

# torch goes first, and builds are not isolated: an isolated build would fetch a second torch.
$(STAMP): $(BUILT_FROM)
	@test -x $(BIN)/python || { echo "== make the environment $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -c "import torch" 2>/dev/null || { \
		echo "== install $(TORCH)"; $(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"; }
	@echo "== install c2v-engine and what it needs, and compile its extension"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "setuptools>=77" wheel
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -e ".[test,lint]"
	@$(BIN)/c2v doctor > $(STAMP).doctor
	@sed -n '/^extension/,/^$$/p' $(STAMP).doctor
	@touch $(STAMP)

demo: $(STAMP)
	@echo "== gather the docstrings of Python's standard library"
	@$(BIN)/python examples/stdlib_docstrings.py demo/docstrings.jsonl
	@echo "== c2v encode demo/docstrings.jsonl -o demo/docstrings.parquet --id-column id --overwrite"
	@$(BIN)/c2v encode demo/docstrings.jsonl -o demo/docstrings.parquet --id-column id --overwrite
	@echo "== c2v search demo/docstrings.parquet QUESTION... --texts demo/docstrings.jsonl -k 3"
	@$(BIN)/c2v search demo/docstrings.parquet $(QUESTIONS) --texts demo/docstrings.jsonl -k 3

# Interpreted kernels keep one core busy, and so do measurements of tiny models: these tests run
# beside the rest, and are shown after it.
BESIDE := tests/kernels tests/benchmarks tests/bench

test: $(STAMP)
	@echo "== pytest ($(BESIDE) in a process of their own, shown at the end)"
	@shown=$$(mktemp); \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:cacheprovider $(BESIDE) > $$shown 2>&1 & \
	beside=$$!; trap 'kill $$beside 2> /dev/null; rm -f $$shown' EXIT; \
	$(BIN)/python -m pytest -q $(addprefix --ignore=,$(BESIDE)); rest=$$?; \
	wait $$beside; code=$$?; cat $$shown; exit $$((rest | code))

lint: $(STAMP)
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== mypy"
	@$(BIN)/mypy

bench: $(STAMP)
	@$(BIN)/c2v bench

peers: $(STAMP)
	@$(BIN)/python benchmarks/bench_peers.py
	@$(BIN)/c2v bench methods $(SIZES) --tokens 512 -o benchmarks/results/methods-cpu

figures: $(STAMP)
	@$(BIN)/python tools/figures.py $(if $(CHECK),--check)

# CHECK="--counts-only" for a busy machine, CHECK="--update" to store what is found.
bench-check: $(STAMP)
	@$(BIN)/python benchmarks/check_regressions.py $(CHECK)

aot: $(STAMP)
	@$(BIN)/python tools/aot.py

# Runs with the interpreter that has the CUDA torch; installs nothing. COMMIT= names the commit of a
# copy without .git.
gpu:
	@$(PYTHON) benchmarks/gpu.py --out $(OUT) $(if $(COMMIT),--commit $(COMMIT))

clean:
	rm -rf $(STAMP) build dist demo *.egg-info c2v_engine/_C*.so .pytest_cache .mypy_cache .ruff_cache
