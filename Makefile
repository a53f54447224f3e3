# SPDX-License-Identifier: Apache-2.0
# Every target does its own set-up. All it needs is Python 3.11, make and a package
# index; the first set-up downloads several gigabytes (SGLang brings PyTorch).

PYTHON ?= $(shell for p in python3.11 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null \
	&& { command -v "$$p"; break; }; done)
BIN := .venv/bin
STAMP := .venv/.setup-done

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-unit lint docs bench upgrade-check clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 15

setup: $(STAMP) ## Make .venv and install the package with its test tools

# pip finds its own configuration; uv does not read it, so a configured index is
# handed over unless uv has one of its own.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 was not found as python3.11 or" \
		"python3; install it, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	index=$$($(BIN)/python -m pip config list \
		| sed -n "s/^.*\.index-url='\(.*\)'$$/\1/p" | head -n 1); \
	[ -z "$$index" ] || export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}"; \
	$(BIN)/uv pip install --python $(BIN)/python -e '.[test]'
	@touch $@

demo: setup ## Write tiny checkpoints, draw and chat with them, on any device
	$(BIN)/python -m sglang_ext_gen demo
	$(BIN)/python -m sglang_ext_gen demo ming_omni

# Two at a time: a starting server keeps one core busy for a minute. Servers come
# first, so that the short files at the end keep both busy.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: setup ## Run every test that needs no accelerator; ARGS are passed to pytest
	$(PYTEST) $(ARGS)

test-unit: setup ## Run the tests that start no server; ARGS as above
	$(PYTEST) test/unit test/full_size test/cuda --ignore test/full_size/test_fit.py $(ARGS)

lint: setup ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: setup ## Write docs/options.md from the tables of options
	$(BIN)/python -m sglang_ext_gen.cli.options_page docs/options.md

bench: setup ## Run the benchmarks at their tiny size
	$(BIN)/python benchmark/bench_fp8_linear.py --tiny
	$(BIN)/python benchmark/bench_denoise.py --tiny
	$(BIN)/python benchmark/bench_qwen_image.py --tiny
	$(BIN)/python benchmark/bench_lance.py --tiny --parts steps
	$(BIN)/python benchmark/bench_ming_image.py --tiny
	$(BIN)/python benchmark/bench_loading.py --tiny
	$(BIN)/python benchmark/bench_thinker.py --tiny

upgrade-check: setup ## Go through the steps of UPGRADING.md with the installed SGLang
	$(BIN)/python -m sglang_ext_gen doctor --upgrade

clean: ## Remove the environment, caches and build outputs
	rm -rf .venv build dist python/*.egg-info .pytest_cache .ruff_cache
	find python test benchmark -name __pycache__ -type d -prune -exec rm -rf {} +
