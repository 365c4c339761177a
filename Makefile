# One entry point for people and CI. `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := bash
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: help setup lock
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  \033[36m%-18s\033[0m %s\n", $$1, $$2}'

setup: $(VENV)/.stamp ## environment with all extras, from the lock
$(VENV)/.stamp: requirements/dev.txt pyproject.toml
	command -v uv >/dev/null || python3 -m pip install --quiet --root-user-action=ignore uv
	uv venv --quiet --allow-existing $(VENV)
	uv pip sync --quiet --python $(PY) --require-hashes requirements/dev.txt
	uv pip install --quiet --python $(PY) --no-deps --editable .
	touch $@

LOCK := uv pip compile -q --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --python-version 3.11 --custom-compile-command 'make lock' pyproject.toml
lock: ## pin the newest allowed dependencies, with hashes
	$(LOCK) --extra operator -o requirements/operator.txt
	$(LOCK) --extra trainer -o requirements/trainer.txt
	$(LOCK) --extra operator --extra trainer --extra dev -o requirements/dev.txt
	$(LOCK:pyproject.toml=requirements/build.in) -o requirements/build.txt

.PHONY: cluster-build cluster-up cluster-down images
cluster-build: ## compile the Kubernetes that integration tests start (minutes once)
	hack/cluster.sh build

cluster-up: ## start a cluster: kind where Docker and kind are, else a node on this machine
	hack/cluster.sh up

cluster-down: ## stop it; WIPE=1 forgets objects and volumes too
	hack/cluster.sh down $(if $(WIPE),--wipe)

images: cluster-up ## build the operator's and the trainer's image into the cluster
	hack/images.sh build

.PHONY: demo demo-down
demo: setup ## SFT, then DPO, on a real cluster; MODEL=org/name takes a Hub model; the cluster stays
	$(PY) hack/demo/run.py $(if $(MODEL),--model $(MODEL))

demo-down: setup ## take the demo and its cluster away
	$(PY) hack/demo/run.py --down
