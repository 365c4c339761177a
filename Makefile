# One entry point for people and CI. `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := bash
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: help setup lock
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  \033[36m%-18s\033[0m %s\n", $$1, $$2}'

setup: $(VENV)/.stamp ## environment with all extras, from the lock
$(VENV)/.stamp: requirements/dev.txt pyproject.toml
	command -v uv >/dev/null || python3 -m pip install --quiet --root-user-action=ignore uv
	uv venv --quiet --allow-existing $(VENV)
	uv pip sync --quiet --python $(PY) --require-hashes requirements/dev.txt
	uv pip install --quiet --python $(PY) --no-deps --editable .
	touch $@

MLFLOW_VENV := .venv-mlflow
.PHONY: setup-mlflow
setup-mlflow: $(MLFLOW_VENV)/.stamp ## the MLflow server that tests of tracking run, in an environment of its own
$(MLFLOW_VENV)/.stamp: requirements/mlflow.txt | setup
	uv venv --quiet --allow-existing $(MLFLOW_VENV)
	uv pip sync --quiet --python $(MLFLOW_VENV)/bin/python --require-hashes requirements/mlflow.txt
	touch $@

LOCK := uv pip compile -q --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --python-version 3.11 --custom-compile-command 'make lock' pyproject.toml
lock: ## pin the newest allowed dependencies, with hashes
	$(LOCK) --extra operator --extra trainer --extra dev -o requirements/dev.txt
	$(LOCK) -c requirements/dev.txt --extra operator -o requirements/operator.txt
	$(LOCK) -c requirements/dev.txt --extra trainer -o requirements/trainer.txt
	$(LOCK:pyproject.toml=requirements/build.in) -o requirements/build.txt
	$(LOCK:pyproject.toml=requirements/mlflow.in) -o requirements/mlflow.txt
	$(LOCK:pyproject.toml=requirements/bench.in) --no-deps -o requirements/bench.txt

.PHONY: cluster-build kueue-build cluster-up cluster-down images
cluster-build: ## compile the Kubernetes that integration tests start (minutes once)
	hack/cluster.sh build

kueue-build: ## compile the Kueue that tests of queues start beside it (minutes once)
	hack/cluster.sh build-kueue

cluster-up: ## start a cluster: kind where Docker and kind are, else a node on this machine
	hack/cluster.sh up

cluster-down: ## stop it; WIPE=1 forgets objects and volumes too
	hack/cluster.sh down $(if $(WIPE),--wipe)

images: cluster-up ## build the operator's and the trainer's image into the cluster
	hack/images.sh build

.PHONY: fmt lint generate verify
fmt: setup ## format and sort imports
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

lint: setup ## ruff, mypy strict, import-linter
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

generate: setup ## write every generated file: CRDs, the chart's files
	$(PY) hack/generate.py

verify: setup ## fail when a generated file differs from what generate would write
	$(PY) hack/generate.py --check

.PHONY: test test-unit test-parity test-integration test-e2e chart
test: test-unit test-parity test-integration test-e2e ## every tier

test-unit: setup setup-mlflow ## unit and architecture tests; Python is all they need
	$(PY) -m pytest tests/unit tests/architecture -n auto --dist worksteal

test-parity: setup ## step by step the same numbers as TRL, on the CPU
	$(PY) -m pytest tests/parity

test-integration: setup cluster-build kueue-build ## the contract, the chart and whole lifecycles on a real API server
	$(PY) -m pytest tests/integration tests/chart -n auto --maxprocesses 4 --dist loadfile

test-e2e: setup ## real pods of the real images on a real node
	$(PY) -m pytest tests/e2e

chart: setup cluster-build ## lint the chart and test what it renders
	PATH="$${CLUSTER_ROOT:-/var/lib/local-cluster}/bin:$$PATH" helm lint --strict --quiet charts/finetune-operator
	$(PY) -m pytest tests/chart

.PHONY: bench-data bench-cpu bench-gpu bench-memory bench-idle bench-faults bench-stores soak scale
bench-data: setup ## rows per second and memory of the data gate, up to a million rows
	$(PY) benchmarks/data_gate.py

scale: setup cluster-build ## a thousand jobs at once, against a client without logic; wants an idle machine; JOBS=100
	$(PY) benchmarks/scale.py $(if $(JOBS),--jobs $(JOBS) --finished $(JOBS))

bench-cpu: setup ## shared prompts against unshared ones, plain transformers and TRL; wants an idle machine
	$(PY) benchmarks/cpu.py

bench-gpu: setup ## the same and more on a GPU, with Liger's layers; MODEL=8b or 0.6b
	uv pip install --quiet --python $(VENV)/bin/python --no-deps --require-hashes -r requirements/bench.txt
	$(PY) benchmarks/gpu.py $(if $(MODEL),--model $(MODEL))

bench-memory: setup ## estimated memory and operations of a step against real ones; a few minutes, 4 GiB
	$(PY) benchmarks/memory.py

bench-idle: setup cluster-build ## an hour without any job: the operator neither restarts nor grows
	$(PY) benchmarks/idle.py

bench-faults: setup cluster-build ## how long the operator needs after each fault between it and the API server
	$(PY) benchmarks/faults.py

bench-stores: setup ## five gigabytes from an object store and by https, with and without cuts: rate and memory
	$(PY) benchmarks/stores.py

soak: setup ## fifty jobs at once on a real node while the operator and training pods are killed; up to an hour
	$(PY) benchmarks/soak.py

.PHONY: demo demo-down
demo: setup ## SFT, then DPO, on a real cluster; MODEL=org/name takes a Hub model; the cluster stays
	$(PY) hack/demo/run.py $(if $(MODEL),--model $(MODEL))

demo-down: setup ## take the demo and its cluster away
	$(PY) hack/demo/run.py --down
