# Every target works on a fresh machine by itself: it installs what it needs (scripts/env.sh) and leaves caches outside the tree.
# The conversation trace is used where it lies beside the checkout; otherwise an in-tree generator of the same shape.
PYTHON ?= python3
RUN := .venv/bin/python
TRACE ?= ../shared/traces/conversation_trace.jsonl
# Tests side by side: one a processor.
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
# Level of `make cluster-up`: full, or api for the API alone.
LEVEL ?= full
# More arguments for `make demo`, such as DEMO="--limit 100".
DEMO ?=

.PHONY: up demo test test-tools lint types e2e cluster-up cluster-down e2e-load e2e-vllm soak nightly generate clean env compile bench bench-gateway bench-gateway-instructions bench-index bench-operator operator-soak bench-routing bench-sharing bench-scheduling bench-agreement bench-fitted bench-autoscaler bench-mix lock

env:
	@PYTHON=$(PYTHON) scripts/env.sh

up: env ## serve the bundled eight-engine example until Ctrl-C
	@exec $(RUN) -m fairlead_cli up

demo: env ## replay real traffic under three routing presets, live and simulated; report in out/demo
	@$(RUN) -m fairlead_cli demo $(if $(wildcard $(TRACE)),--trace $(TRACE)) --out out/demo $(DEMO)

test-tools: env ## etcd, kube-apiserver, helm and promtool for the tests: compiled once into the cache, where there is Go
	@$(RUN) e2e/cluster test-tools || [ $$? -eq 3 ]

test: test-tools ## unit, property and integration tests
	@$(RUN) -m pytest -n $(JOBS) --dist loadfile

lint: env ## style, types and the arrows of the house
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@$(RUN) -c 'import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())'
	@$(RUN) scripts/generate.py --check
	@$(RUN) scripts/check_prose.py

e2e: env ## local mode as a user drives it, and our images on a real cluster: KUBECONFIG's if it is kind's, else one of our own
	@[ -n "$$KUBECONFIG" ] || $(RUN) e2e/cluster build >/dev/null
	@$(RUN) -m pytest e2e -n 4 -m "not alone"
	@$(RUN) -m pytest e2e -m alone  # it loads the machine: what is slow beside it would be taken for its doing

e2e-load: env ## the story on the cluster once more, under 20 streams a second of 200 tokens, rollouts of groups of nodes, and numbers that follow the load; bench/results/e2e.json
	@FAIRLEAD_E2E=full $(RUN) -m pytest e2e/kube/test_story.py e2e/kube/test_rollouts.py e2e/kube/test_autoscaling.py e2e/kube/test_beside.py -q -k "soon or moves or group or alone or follows or midst or hpa or sides or sleeps"

cluster-up: env ## a real Kubernetes on this machine; prints the line that puts it into a shell. Compiles it the first time
	@$(RUN) e2e/cluster up --level $(LEVEL)

cluster-down: env ## end and remove it
	@$(RUN) e2e/cluster down

compile: env ## the data plane as machine code: half the processor time; once per state of the sources, in the cache
	@$(RUN) scripts/compile.py || [ $$? -eq 3 ]

e2e-vllm: compile ## real vLLM engines on this machine's processors; 6 GB the first time; report in bench/results/vllm.json
	@$(RUN) e2e/vllm/run.py

# One benchmark where NAME says which: make bench NAME=gateway-instructions
bench: $(if $(NAME),bench-$(NAME),bench-routing bench-sharing bench-gateway bench-index)

bench-gateway: compile ## the gateway beside its peers, all in one run; out/bench/gateway.json
	@$(RUN) bench/gateway/run.py

bench-gateway-instructions: env ## instructions of the compiled gateway per request, chunk and decision, beside an older commit; out/bench/gateway-instructions.json
	@$(RUN) bench/instructions/run.py

bench-index: compile ## the indexer's process, mirrors and Redis, beside a Redis hash for each block; out/bench/index.json
	@$(RUN) bench/index/run.py

bench-operator: env ## the operator and a thousand models before a real API server; bench/results/operator.json
	@$(RUN) bench/operator/run.py

operator-soak: env ## operators that hand over, lead at once, lose the API server, are killed around every write; bench/results/operator-soak.json
	@$(RUN) bench/operator/soak.py

bench-routing: env ## the bars of routing and a grid of presets in the fleet simulator; out/bench/routing.json
	@$(RUN) scripts/compile.py --sim || [ $$? -eq 3 ]
	@$(RUN) bench/routing/run.py $(if $(wildcard $(TRACE)),--trace $(TRACE))

bench-autoscaler: env ## the autoscaler and others' presets in a simulated closed loop, beside an oracle; out/bench/autoscaler.json
	@$(RUN) scripts/compile.py --sim || [ $$? -eq 3 ]
	@$(RUN) bench/autoscaler/run.py $(if $(wildcard $(dir $(TRACE))),--traces $(dir $(TRACE)))

bench-sharing: env ## several gateways in the fleet simulator, by what they know of one another; out/bench/sharing.json
	@$(RUN) bench/sharing.py $(if $(wildcard $(TRACE)),--trace $(TRACE))

bench-scheduling: env ## the gate before simulated engines: two objectives, long prompts among short ones, memory; out/bench/scheduling.json
	@$(RUN) bench/scheduling.py

bench-agreement: env ## the simulator beside one and three real gateways and engines over HTTP; out/bench/agreement.json
	@$(RUN) bench/agreement.py

bench-fitted: env ## the simulator beside two real vLLM engines, by what a gateway learned of them; 6 GB the first time; out/bench/fitted.json
	@$(RUN) bench/fitted.py

bench-mix: env ## accelerator mixes beside one kind and slices; prefill and decode after the traffic turns; 5 minutes of a core, on all of them; out/bench/mix.json
	@$(RUN) bench/mix/run.py

soak: compile ## engines killed, gateways restarted, hostile requests, a million more, as often as the bar says; bench/results/soak.json
	@FAIRLEAD_SOAK=full $(RUN) -m pytest e2e/test_soak.py -q

nightly: compile ## the property tests with many more examples; ten million fuzzed inputs; ten thousand fleets in trouble; bench/results/nightly*.json
	@FAIRLEAD_EXAMPLES=5000 $(RUN) -m pytest -n $(JOBS) --dist loadfile -m property --timeout 1800
	@$(RUN) scripts/nightly_fuzz.py
	@$(RUN) scripts/compile.py --sim || [ $$? -eq 3 ]
	@$(RUN) scripts/nightly_fleet.py --jobs $(JOBS)

generate: env ## CRDs and reference pages from the API types
	@$(RUN) scripts/generate.py

lock: ## resolve the dependencies anew, with hashes and without naming an index
	@$(PYTHON) -m pip install -q --target out/uv uv
	@PYTHONPATH=out/uv $(PYTHON) -m uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header -q -o requirements/dev.txt

clean: ## remove what was made in the tree; caches elsewhere stay
	rm -rf .venv out dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
