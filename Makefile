# Few targets; `make` alone lists them. Everything runs in .venv, made here from the package registry.
# Of the machine's interpreters of the version of python3 the fastest, unless PYTHON names one: bench/interpreter.py.
ifeq ($(origin PYTHON),undefined)
PYTHON := python3
CHOSEN = "$$($(PYTHON) bench/interpreter.py || command -v $(PYTHON))"
else
CHOSEN = $(PYTHON)
endif
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPILED := build/compiled/.built
SEEDS ?= 200
FIRST ?= 10001
HOURS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long check sim sim-many search mutants compiled test-compiled bench faults drill image k8s-test kind-test clean

help:            ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv with everything (also done by the others)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "actorgrid needs Python 3.11 or newer; try: make PYTHON=python3.12"; exit 1; }
	$(CHOSEN) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)   ## the main job: 336,776 real departures through durable actors, with a host killed half-way
	$(BIN)/python examples/flights_demo.py

test: $(STAMP)   ## format, lint, types, layers and all tests (under 15 minutes on two cores)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 -m "not cluster and not slow and not long and not kubernetes"
	$(BIN)/python -m pytest -n 2 -m "slow and not cluster and not kubernetes"
	$(BIN)/python -m pytest -m "cluster and not kubernetes"

test-long: $(STAMP) ## tests of a minute and more: pods on a real Ray that leave, die and come back (two minutes)
	$(BIN)/python -m pytest -m "long and not kubernetes"

check: $(STAMP)  ## the fast half of `make test`: no cluster, no slow tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 -m "not cluster and not slow and not long and not kubernetes"

sim: $(STAMP)    ## the whole grid on virtual time: SEEDS=200 plans of faults, and 50 seeds in two processes with different hash seeds (four minutes)
	$(BIN)/python -m tests.simulation --seeds 1-$(SEEDS)
	$(BIN)/python -m tests.simulation.determinism --seeds 1-50

sim-many: $(STAMP) ## plans without end, FIRST=... on, until one is broken or HOURS=1 are over
	$(BIN)/python -m tests.simulation --seeds $(FIRST)- --hours $(HOURS) --json sim-many.json

search: $(STAMP) ## randomised tests with new seeds, 200 walks of the replication core a kind (five minutes); a failure prints its seed
	ACTORGRID_TEST_WALKS=200 $(BIN)/python -m pytest -n 2 --seed new -m "not cluster and not slow and not long and not kubernetes" \
		tests/actor tests/disks tests/replication tests/storage tests/testing tests/wire

mutants: $(STAMP) ## switch on one bug after another, and see the simulation find each (ten minutes)
	$(BIN)/python -m tests.simulation.hunt

compiled: $(COMPILED) ## build/compiled: the package with its hot modules compiled; put it in front of PYTHONPATH (two minutes, needs a C compiler)

$(COMPILED): $(STAMP) hatch_build.py $(shell find actorgrid placement -name '*.py')
	rm -rf build/compiled
	ACTORGRID_COMPILE=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/compiled .
	@touch $@

test-compiled: $(COMPILED) ## the fast tests on the compiled build, and 50 simulated grids that must go the same way on both (six minutes)
	PYTHONPATH=$(CURDIR)/build/compiled:$(CURDIR) $(BIN)/python -P -m pytest -n 2 -m "not cluster and not slow and not long and not kubernetes"
	$(BIN)/python -m tests.simulation.determinism --seeds 1-50 --compiled build/compiled

bench: $(COMPILED) ## the standard benchmarks on the compiled build, peers included: bench-report/index.html, kept under bench/results (ten minutes)
	PYTHONPATH=$(CURDIR)/build/compiled:$(CURDIR) $(BIN)/python -P -m bench suite --out bench-report

faults: $(STAMP) ## 100 faults with real processes under load: kills, stops, cuts, disks (25 minutes; as root, for the cuts)
	$(BIN)/python -m tests.faults.campaign --seed 1 --kills 50 --stops 20 --cuts 20 --disks 10 --partitions 64
	$(BIN)/python -m tests.faults.failover_gap
	$(BIN)/python -m tests.faults.stale_reads

drill: $(COMPILED) ## hosts join, are drained, restarted and killed under load, compiled; drill.png shows calls/s and latency (three minutes)
	PYTHONPATH=$(CURDIR)/build/compiled:$(CURDIR) $(BIN)/python -P -m tests.faults.drill --plot drill.png

image:           ## the container image actorgrid:latest, for nodes, Ray's head, Jobs and tests (docs/kubernetes.md)
	docker build --tag actorgrid:latest .

k8s-test: $(STAMP) ## the watcher against a real API server: ACTORGRID_K8S_CONTROL_PLANE names a script that starts one, or KUBECONFIG a cluster
	$(BIN)/python -m pytest -m kubernetes -rs tests/kubernetes

kind-test: $(STAMP) ## a grid on a real cluster of three workers, under load: install, scale, drain, kill, upgrade (docker, kind, kubectl, helm; half an hour)
	$(BIN)/python -m tests.kind

clean:           ## remove the virtual environment and caches (no data directory)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist
