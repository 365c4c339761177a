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

.PHONY: demo demo-down
demo: setup ## SFT, then DPO, on a real cluster; MODEL=org/name takes a Hub model; the cluster stays
	$(PY) hack/demo/run.py $(if $(MODEL),--model $(MODEL))

demo-down: setup ## take the demo and its cluster away
	$(PY) hack/demo/run.py --down
