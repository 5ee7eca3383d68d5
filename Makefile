# make demo | make test: the only things needed beforehand are make and Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTRAS := train,eval,tune,ray,mpe,pettingzoo,vmas,lbf,rware,mujoco,smax,secure,metrics,otel,record,hub,dev
# More arguments for the demo, e.g. make demo DEMO_ARGS='--minutes 10 --seed 2'
DEMO_ARGS ?=
# More arguments for pytest, e.g. make test PYTEST_ARGS='tests/unit -k bundle'
PYTEST_ARGS ?=
# More arguments for the mutation run, e.g. make mutation MUTATION_ARGS='--only hmarl/sdk/clients/link.py'
MUTATION_ARGS ?=
# What concerns the runtime; the others train, or simulate
RUNTIME_TESTS ?= $(shell grep -lE 'hmarl\.(runtime|agent)|agent_process|fleet_process' tests/unit/*.py tests/integration/*.py tests/e2e/*.py | xargs grep -LE 'hmarl\.trainer|import torch')
# How the parsers are fuzzed, e.g. make fuzz-parsers FUZZ_ARGS='--only manifest --seconds 600'
FUZZ_ARGS ?=
# Processes that share work out. The quick tests have one more: a good part of their time they wait, for processes that
# start and end, and for time to go by
WORKERS ?= 2
TEST_WORKERS ?= 3
# What builds the documentation site is an environment of its own: it needs nothing of hmarl
SITE_PYTHON := build/docs/venv/bin/python

.DEFAULT_GOAL := help
.PHONY: release help install demo test test-slow benchmark fuzz fuzz-parsers soak chaos rotation reloads ray-kills peers clients mutation coverage docs docs-serve lint format proto clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## Make the virtual environment and install hmarl into it, editable, with all extras

# The stamp is written last, so that an installation that was cut off is repeated.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]' -c constraints.txt
	@touch $@

demo: $(INSTALLED)  ## Train HCPO for a minute or two, export, serve one process per agent, evaluate over gRPC
	$(BIN)/python scripts/demo.py $(DEMO_ARGS)

test: $(INSTALLED)  ## All quick tests, about 14 minutes on two cores
	@echo "All quick tests take about 14 minutes on two cores; the slowest are listed at the end."
	@$(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile --durations 10 --durations-min 1 $(PYTEST_ARGS) || { \
		status=$$?; test $$status = 1 || exit $$status; \
		echo "Once more, those that failed, one after the other. What passes now depends on how busy the machine is: mend it."; \
		$(BIN)/python -m pytest --last-failed --last-failed-no-failures none $(PYTEST_ARGS); }

test-slow: $(INSTALLED)  ## Statistical and long tests: learning curves and the like
	$(BIN)/python -m pytest --override-ini testpaths=tests -m slow --timeout 3600 $(PYTEST_ARGS)

benchmark: $(INSTALLED)  ## Timed comparisons, each with its reference in the same run
	$(BIN)/python -m pytest --override-ini testpaths=tests/benchmarks -m benchmark -s --timeout 3600 $(PYTEST_ARGS)

fuzz: $(INSTALLED)  ## 140,000 changed messages on every method of a served agent, 100,000 over frames
	$(BIN)/python -m pytest tests/reliability/test_fuzz_wire.py tests/reliability/test_fuzz_frames.py -m reliability --timeout 3600 $(PYTEST_ARGS)

fuzz-parsers: $(INSTALLED)  ## Coverage-guided: bundles, manifests, graphs, signatures, endpoints files, frames, recordings; a minute each
	$(BIN)/python scripts/fuzz_parsers.py $(FUZZ_ARGS)

soak: $(INSTALLED)  ## A million acts, each compared with the policy in process
	$(BIN)/python -m pytest tests/reliability/test_soak.py -m reliability --timeout 3600 $(PYTEST_ARGS)

peers: $(INSTALLED)  ## Beside other people's programs, each in an environment of its own: Prometheus, tritonclient, model-signing
	$(BIN)/python -m pytest --override-ini testpaths=tests/peers -m peers -s --timeout 3600 $(PYTEST_ARGS)

# Each language is skipped, with a word, where its tools are missing.
clients: $(INSTALLED)  ## The conformance runners of the clients in other languages: TypeScript (needs node and npm), C++ (g++)
	@if command -v npm >/dev/null; then cd clients/typescript && npm ci --silent --no-audit --no-fund && ./generate.sh build/generated && \
		diff -r build/generated src/generated && npm test; else echo "skipped: TypeScript (npm is not installed)"; fi
	@if echo '#include <nlohmann/json.hpp>' | g++ -fsyntax-only -x c++ - 2>/dev/null; then $(MAKE) -C clients/cpp test; \
		else echo "skipped: C++ (g++ or nlohmann-json3-dev is not installed)"; fi

mutation: $(INSTALLED)  ## Change the code in one place at a time: does a test fail? An hour on two cores
	$(BIN)/python scripts/mutation.py --workers $(WORKERS) $(MUTATION_ARGS)

coverage: $(INSTALLED)  ## Lines and branches of runtime/ that its tests reach, in all their processes; half an hour
	rm -rf build/coverage
	-$(BIN)/python -m coverage run -m pytest --numprocesses $(WORKERS) --dist loadfile $(RUNTIME_TESTS) $(PYTEST_ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

chaos: $(INSTALLED)  ## Kills, freezes, rude peers, dead links, full disks, jumping clocks, rotations and reloads while agents are served
	$(BIN)/python -m pytest tests/reliability/test_chaos.py tests/reliability/test_chaos_surroundings.py tests/reliability/test_rotation.py \
		tests/reliability/test_reloads.py -m reliability --timeout 3600 $(PYTEST_ARGS)

rotation: $(INSTALLED)  ## Certificates of agents and clients are replaced while they act, a client alone and a team: each act compared
	$(BIN)/python -m pytest tests/reliability/test_rotation.py -m reliability -s --timeout 3600 $(PYTEST_ARGS)

reloads: $(INSTALLED)  ## A fleet is given one bundle after the other while teams play: 100,000 acts, each compared
	$(BIN)/python -m pytest tests/reliability/test_reloads.py -m reliability --timeout 3600 $(PYTEST_ARGS)

ray-kills: $(INSTALLED)  ## Workers, machines and learners of runs on Ray are killed, ten times each: each run compared with one that was not
	$(BIN)/python -m pytest tests/reliability/test_ray_kills.py -m reliability -s --timeout 7200 $(PYTEST_ARGS)

docs: build/docs/venv/.installed  ## Build the documentation site into build/docs/site, warnings as errors; check links and spelling
	$(SITE_PYTHON) scripts/build_site.py build
	build/docs/venv/bin/codespell

docs-serve: build/docs/venv/.installed  ## Serve the documentation site at http://localhost:8000, anew whenever a page changes
	$(SITE_PYTHON) scripts/build_site.py serve

build/docs/venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv build/docs/venv
	$(SITE_PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
		> build/docs/requirements.txt
	$(SITE_PYTHON) -m pip install --quiet --disable-pip-version-check -r build/docs/requirements.txt -c constraints.txt
	@touch $@

release: $(INSTALLED)  ## Wheel, source distribution, SBOM and digests into dist/; the wheel is installed and serves a team
	$(BIN)/python scripts/release.py

lint: $(INSTALLED)  ## Style, types, import contracts, protocol drift
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check
	$(BIN)/python proto/conformance/make_vectors.py --check

format: $(INSTALLED)  ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(INSTALLED)  ## Regenerate the protocol's Python modules, and the conformance vectors
	$(BIN)/python proto/generate.py
	$(BIN)/python proto/conformance/make_vectors.py

clean:  ## Delete the virtual environment, caches, builds and the demo's output; runs/ and reports/ stay
	rm -rf $(VENV) build dist demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
