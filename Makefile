# Every target works on a fresh machine by itself: it installs what it needs (scripts/env.sh) and leaves caches outside the tree.
PYTHON ?= python3
RUN := .venv/bin/python
# `make bench TRACES=DIR`: a folder with whole published traces (docs/contributing/recorded-data.md). Without it,
# benchmarks generate traffic of their shape; `make demo` replays the excerpt in the repository.
TRACES ?=
# Tests side by side: one a processor, and one more, since some of them wait.
JOBS ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2) + 1)))
# `make test CLUSTER=1`: first compile etcd, kube-apiserver, helm and promtool, once, where there is Go.
CLUSTER ?=
# `make test FAST=1`: tests of pure code, without processes, clusters and property tests.
FAST ?=
PURE_TESTS := $(addprefix tests/,autoscaler/collector autoscaler/core sim/autoscalers cli/explain cli/rollouts cli/scaling \
  fairlead/api fairlead/engines fairlead/fleet fairlead/manifests gateway/routing \
  kvstore/blockstore kvstore/events operator/render operator/status repository sim/engine \
  sim/generation sim/workload) \
  $(wildcard $(addprefix tests/gateway/,admission/test_*.py kv_index/test_*.py telemetry/test_*.py))
# `make test CHANGED=1`: the tests that uncommitted changes can reach; CHANGED=REVISION: those since a commit.
CHANGED ?=
REACHED = $(shell $(RUN) tests/repository/changed_tests.py $(filter-out 1,$(CHANGED)))
# `SECOND_TRY=1`, for CI: run up to three failed tests once more.
SECOND_TRY ?=
AGAIN := $(if $(SECOND_TRY), || $(RUN) scripts/reruns/second_try.py)
ALL_NEW := $(if $(SECOND_TRY),--cache-clear) # pytest would keep failures of earlier runs, of other tests
# `make e2e LOAD=1`: the tests on the cluster that need load.
LOAD ?=
# `make e2e EXTENDED=1`: commands of all pages, wheel, make targets, a canary in prompts, a release from a registry, dashboards.
EXTENDED ?=
# `make e2e PROVIDER=kind`: the cluster's tests on kind (docker, else podman), in place of a cluster of our own.
PROVIDER ?=
export FAIRLEAD_E2E_PROVIDER := $(PROVIDER)
E2E_TESTS := $(if $(PROVIDER),e2e/kube,e2e)
# Level of `make cluster-up`: full, or api for the API alone.
LEVEL ?= full
# `make e2e-gpu ENGINES=sim`: simulated engines in place of a GPU. MODEL: folder or hub name of a real model.
ENGINES ?=
MODEL ?=
# One benchmark, and its own arguments: make bench NAME=gateway ARGS=--quick
NAME ?=
ARGS ?=
# More arguments for `make demo`, such as DEMO="--limit 100".
DEMO ?=
# The locks of everything that `make` installs. Those of the images are parts of dev.txt.
LOCKS := requirements/dev.txt requirements/audit.txt requirements/docs.txt requirements/locking.txt
BENCH = $(RUN) -m fairlead_bench $(if $(TRACES),--trace $(TRACES)/conversation_trace.jsonl)

# Tests start hundreds of Python processes. Without its bytecode each would compile all modules that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help up demo test test-tools lint lint-types lint-rest e2e e2e-vllm e2e-sglang e2e-gpu cluster-up cluster-down bench soak nightly compile generate docs release publish lock lock-images licenses audit sbom clean env

help: ## print the targets
	@sed -n 's/^\([a-z0-9%-]*\):.*## /\1: /p' $(MAKEFILE_LIST) | awk -F': ' '{ i = index($$0, ": "); printf "  %-14s %s\n", $$1, substr($$0, i + 2) }'

env:
	@PYTHON=$(PYTHON) scripts/env.sh

up: env ## serve the bundled example of eight engines until Ctrl-C
	@exec $(RUN) -m fairlead_cli up

demo: env ## replay traffic under three routing presets, live and simulated; writes out/demo
	@$(RUN) -m fairlead_cli demo --out out/demo $(DEMO)

test-tools: env ## compile etcd, kube-apiserver, helm and promtool for the tests, once, where there is Go
	@$(RUN) e2e/cluster test-tools || [ $$? -eq 3 ]

test: $(if $(CLUSTER),test-tools,env) ## run unit, property and integration tests; FAST=1: pure code alone; CHANGED=1: what a change reaches; CLUSTER=1: build the cluster's programs first
	@$(RUN) -m pytest $(ALL_NEW) --processes $(JOBS) $(if $(FAST),-p no:hypothesispytest -m "not property and not api_server" $(PURE_TESTS),$(if $(CHANGED),$(REACHED)))$(AGAIN)

lint: env ## check style, types, import contracts, generated files and prose
	@$(MAKE) --no-print-directory -j2 -O lint-types lint-rest

lint-types:
	@$(RUN) -m mypy
	@$(RUN) -m mypy --explicit-package-bases e2e scripts

lint-rest:
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -c 'import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())'
	@$(RUN) scripts/generate.py --check
	@$(RUN) scripts/check_prose.py

e2e: env ## run Fairlead as its users do, locally and on a Kubernetes cluster; LOAD=1: under load; EXTENDED=1: pages, wheel, release, dashboards
	@[ -n "$$KUBECONFIG" ] || $(RUN) e2e/cluster build $(if $(PROVIDER),--level $(PROVIDER)) >/dev/null
ifdef LOAD
	@FAIRLEAD_E2E=full $(RUN) -m pytest e2e/kube -q -m load
else ifdef EXTENDED
	@$(RUN) -m pytest $(E2E_TESTS) -m extended
else
	@$(RUN) -m pytest $(E2E_TESTS) $(ALL_NEW) --processes 4 -m "not alone and not extended"$(AGAIN)
	@$(if $(PROVIDER),true,$(RUN) -m pytest e2e $(ALL_NEW) -m alone$(AGAIN))  # these load the machine, or would take its load for slow engines
endif

cluster-up: env ## start a Kubernetes on this machine (the first time it is compiled) and print the line that selects it in a shell
	@$(RUN) e2e/cluster up --level $(LEVEL)

cluster-down: env ## stop and remove the cluster of cluster-up
	@$(RUN) e2e/cluster down

compile: env ## compile the data plane with mypyc, once for each state of the sources, into the cache
	@$(RUN) scripts/compile.py || [ $$? -eq 3 ]

e2e-vllm: compile ## run against vLLM on this machine's processors (6 GB the first time); writes bench/results/vllm.json
	@$(RUN) e2e/vllm/run.py

e2e-sglang: compile ## run against SGLang on this machine's processors (5 GB the first time); writes bench/results/sglang.json
	@$(RUN) e2e/sglang/run.py

e2e-gpu: compile ## run against vLLM on this machine's GPUs; writes bench/results/gpu.json. ENGINES=sim: simulated; MODEL=… real weights
	@$(RUN) e2e/gpu/run.py $(if $(ENGINES),--engines $(ENGINES)) $(if $(MODEL),--model $(MODEL)) $(ARGS)

bench: env ## run the benchmarks, or NAME=… alone (ARGS=… are its arguments; `bench-NAME` is the same); they write out/bench/*.json
	@$(BENCH) $(if $(NAME),$(NAME) $(ARGS))

records: env ## list the records of bench/results that are older than the code that they measure
	@$(RUN) scripts/records.py $(NAME) || true

bench-%: env
	@$(BENCH) $* $(ARGS)

soak: compile ## kill engines, gateways and Redis, send malformed requests and a million good ones; writes bench/results/soak*.json
	@FAIRLEAD_SOAK=full $(RUN) -m pytest e2e/soak/test_soak.py -q

nightly: compile ## run property tests with 5,000 examples, simulations in full, all tests five times under load, ten million fuzzed inputs, ten thousand fleets with faults; bench/results/nightly*.json
	@FAIRLEAD_NIGHTLY=1 FAIRLEAD_EXAMPLES=5000 $(RUN) -m pytest --processes $(JOBS) \
	  -m "property or nightly or shortened" --timeout 1800
	@FAIRLEAD_TEST_LOOPS=real $(RUN) -m pytest --processes $(JOBS) -m simulated
	@$(RUN) scripts/reruns/nightly_rounds.py --jobs $(JOBS)
	@$(RUN) scripts/nightly_fuzz.py
	@$(RUN) scripts/compile.py --sim || [ $$? -eq 3 ]
	@$(RUN) scripts/nightly_fleet.py --jobs $(JOBS)
	@$(RUN) e2e/gpu/run.py --engines sim
	@$(MAKE) e2e EXTENDED=1
	@$(MAKE) e2e PROVIDER=kind
	@$(MAKE) e2e-sglang

generate: env ## write CRDs, chart files and reference pages from the types
	@$(RUN) scripts/generate.py

docs: env ## build the documentation site, without a warning, into out/site
	@$(RUN) scripts/docs_site.py $(ARGS)

release: env ## write the files of a release into dist/; ARGS="wheel --out DIR" for some of them
	@$(RUN) scripts/release $(ARGS)

publish: env ## push images and chart of dist/ to REGISTRY=HOST/PATH, for which `make release` made them
	@$(RUN) scripts/release --publish $(ARGS)

# Wheels that a lock names by hash, and nothing else: building a source distribution would run code that no hash pins.
LOCKED_PIP = -m pip install -q --disable-pip-version-check --no-deps --require-hashes --only-binary :all:
RESOLVE = PYTHONPATH=out/uv $(PYTHON) -m uv pip compile --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-annotate --no-header -q

lock: ## resolve the dependencies anew, with hashes and without the name of an index
	@$(PYTHON) $(LOCKED_PIP) --upgrade --target out/uv -r requirements/locking.txt
	@$(RESOLVE) pyproject.toml --all-extras --group dev -o requirements/dev.txt
	@$(RESOLVE) --group pyproject.toml:audit -o requirements/audit.txt
	@$(RESOLVE) --group pyproject.toml:docs -o requirements/docs.txt
	@$(RESOLVE) --group pyproject.toml:locking -o requirements/locking.txt

licenses: env ## write THIRD_PARTY_LICENSES from the lock, after a change of it
	@$(RUN) scripts/third_party_licenses.py

audit: ## report known vulnerabilities of the locked packages, from two databases; needs the network
	@$(PYTHON) -m venv out/audit
	@out/audit/bin/python $(LOCKED_PIP) -r requirements/audit.txt
	@for lock in $(LOCKS); do for service in pypi osv; do echo "$$lock, $$service"; out/audit/bin/python -m pip_audit \
	  --strict --disable-pip --require-hashes --progress-spinner off -s $$service -r $$lock || exit 1; done; done

lock-images: env ## lock the newest Debian packages for the images, each with its hash
	@$(RUN) -m scripts.release.images.debian_packages

sbom: env ## write a CycloneDX bill of materials per image into out/sbom, from the locks
	@$(RUN) e2e/cluster sbom --out out/sbom

clean: ## remove what was made in the tree; caches outside stay
	rm -rf .venv out dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
