# The two commands of the README are `make demo` and `make test`; everything they need they make themselves.
PYTHON ?= python3
# The GPU runtime and the CPU one share a folder, so exactly one is installed: the GPU one where a GPU is, or where asked.
EXTRA ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
VENV := .venv
BIN := $(VENV)/bin
# One stamp per runtime, so that asking for the other one installs anew.
STAMP := $(VENV)/.ok-$(EXTRA)
export UV_COMPILE_BYTECODE := 1
# uv does not read pip's setting of the same meaning.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: help install demo test check bench clean
help:
	@echo "make demo     train, compare, export and forecast on embedded data; opens the dashboard (HEADLESS=1: does not)"
	@echo "make test     the whole test suite"
	@echo "make check    lint, types and import rules"
	@echo "make bench    every benchmark, each printing its figures"
	@echo "make install  the environment in $(VENV) (EXTRA=cpu|gpu)"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version)'
	@rm -f $(VENV)/.ok-*
	@if [ "$(EXTRA)" != cpu ] && [ "$(EXTRA)" != gpu ]; then echo "EXTRA is cpu or gpu, not '$(EXTRA)'" >&2; exit 1; fi
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if [ "$(EXTRA)" = gpu ]; then $(BIN)/python -m pip uninstall -qy onnxruntime xgboost-cpu; \
	 else $(BIN)/python -m pip uninstall -qy onnxruntime-gpu xgboost; fi 2>/dev/null
	@$(BIN)/python -m pip install -q uv || echo "uv could not be installed: pip does the whole install" >&2
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install -q -c constraints.txt -e '.[$(EXTRA),robot,postgres,dev]' \
	 || { echo "uv failed: installing with pip" >&2; $(BIN)/python -m pip install -q -c constraints.txt -e '.[$(EXTRA),robot,postgres,dev]'; }
	@$(BIN)/python -m pip check
	@touch $@

demo: install
	@$(BIN)/mnemo demo --out out $(if $(HEADLESS),--headless)

# Not those of many tests first: the pages in a browser are two tests and twenty seconds, and would be left for the end.
test: install
	@$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

check: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: install
	@set -e; for file in tests/benchmarks/bench_*.py tests/benchmarks/memory_tasks.py; do echo "== $$file"; $(BIN)/python $$file; done

clean:
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache
