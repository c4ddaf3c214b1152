"""The examples are valid, numbered without a gap and listed, and the bundled one is one of them.

Examples by intent come in pairs of one shape, on GPUs and simulated. An API server accepts all of
them, and the operator renders each. `e2e/kube/test_examples.py` checks that the simulated ones
become Ready and answer.
"""

import re
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from fairlead import __version__
from fairlead.api.spec.engine import EngineType
from fairlead.api.v1alpha1 import ModelDeployment
from fairlead.fleet.file.format import parse_fleet_file
from fairlead.kube.client import KubeApi
from fairlead.kube.resources import ACCELERATOR_CLASSES, MODEL_ADAPTERS, MODEL_DEPLOYMENTS, resource_of
from fairlead.manifests.loader import load_manifests
from fairlead.runtime.clock import SystemClock
from fairlead_cli.local.stack.component_commands import LOCAL_PEPPER
from fairlead_cli.manifest_lint import LintReport, lint_paths
from fairlead_gateway.tenants.worker.api_keys import key_digest
from fairlead_operator.render import render_model
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.render_cases import default_context
from fairlead_testing.waiting import wait_until
from fairlead_testing.yaml_documents import load_document, load_documents

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
FILES = sorted(EXAMPLES.glob("*.yaml"))
INTENTS = ("single-model", "prefill-decode", "multi-node", "heterogeneous-pools", "external-engines")
THEIRS = EXAMPLES / "external-engines" / "their-engines.yaml"
ROUTES = EXAMPLES / "routes" / "assistant.yaml"
CAPPED, FALLBACKS = ROUTES.with_name("capped.yaml"), ROUTES.with_name("fallbacks.yaml")
EXTERNAL = ROUTES.with_name("external.yaml")
SHADOW, LONG_CONTEXT = ROUTES.with_name("shadow.yaml"), ROUTES.with_name("long-context.yaml")
CODING_AGENTS = ROUTES.with_name("coding-agents.yaml")
TENANTS = EXAMPLES / "tenants" / "two-teams.yaml"
CATALOG = EXAMPLES / "catalog" / "qwen3-32b.yaml"
ADAPTERS = EXAMPLES / "adapters" / "fleet.yaml"
CLUSTER_ADAPTERS = ADAPTERS.with_name("cluster.yaml")
STORED_ADAPTER = ADAPTERS.with_name("object-store.yaml")
ADAPTER_TENANT = ADAPTERS.with_name("tenant.yaml")
CANARY = EXAMPLES / "rollouts" / "canary.yaml"
ON_GPUS = sorted(EXAMPLES.glob("*/gpu*.yaml"))
SIMULATED = sorted(EXAMPLES.glob("*/simulated*.yaml"))


def relative_path(path: Path) -> str:
    return str(path.relative_to(EXAMPLES))


def load_only_model(path: Path) -> ModelDeployment:
    (model,) = load_manifests([path]).models
    return model


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_example_is_a_manifest_that_runs_locally(path: Path) -> None:
    manifests = load_manifests([path])
    assert 1 <= sum(pool.min_replicas for model in manifests.models for pool in model.spec.pools) <= 8
    for model in manifests.models:
        for pool in model.spec.pools:
            assert manifests.engine_profile(pool) is not None


def test_examples_are_numbered_and_listed() -> None:
    assert [path.name[:2] for path in FILES] == [f"{number:02}" for number in range(1, len(FILES) + 1)]
    listed = re.findall(r"^\| \[([^]]+)\]", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert listed == [path.name for path in FILES]


def test_bundled_example_is_the_second_one() -> None:
    bundled = files("fairlead").joinpath("examples/eight-engines.yaml").read_text()
    assert bundled == re.sub(r"# yaml-language-server.*\n", "", (EXAMPLES / "02-eight-engines.yaml").read_text())


def test_first_example_is_the_smallest_manifest() -> None:
    (model,) = load_manifests([FILES[0]]).models
    assert model.model_dump(by_alias=True, exclude_unset=True) == {
        "apiVersion": "serving.fairlead.io/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "qwen3-8b"},
        "spec": {
            "model": {"uri": "hf://Qwen/Qwen3-8B"},
            "engine": {"type": EngineType.SIM},
            "pools": [{"acceleratorClassName": "nvidia-l4"}],
        },
    }


# --- intents ------------------------------------------------------------------------------------------------------------


def test_every_intent_has_a_pair_and_a_readme_link() -> None:
    assert {path.parent.name for path in [*ON_GPUS, *SIMULATED]} == set(INTENTS)
    every = sorted(EXAMPLES.glob("*/*.yaml"))
    routes = (ROUTES, CAPPED, FALLBACKS, EXTERNAL, SHADOW, LONG_CONTEXT, CODING_AGENTS)
    adapters = (ADAPTERS, CLUSTER_ADAPTERS, STORED_ADAPTER, ADAPTER_TENANT)
    others = (THEIRS, *routes, *adapters, CANARY, TENANTS, CATALOG)
    assert every == sorted([*ON_GPUS, *SIMULATED, *others])
    linked = re.findall(r"\]\(([a-z-]+/[a-z0-9-]+\.yaml)\)", (EXAMPLES / "README.md").read_text())
    assert sorted(linked) == [relative_path(path) for path in every]
    folders = [*INTENTS, *(path.parent.name for path in (ROUTES, ADAPTERS, CANARY, TENANTS, CATALOG))]
    assert list(dict.fromkeys(link.partition("/")[0] for link in linked)) == folders


def test_the_fleet_file_with_adapters_is_valid() -> None:
    fleet = parse_fleet_file(ADAPTERS.read_text(), file="fleet.yaml")
    (model,) = fleet.models.values()
    assert len(model.adapters) > model.adapter_slots


def test_the_adapter_of_an_object_store_is_one_that_its_base_can_download() -> None:
    manifests = load_manifests([STORED_ADAPTER])
    rendered = render_model(manifests.models[0], manifests.accelerators, default_context())
    assert rendered.problems == ()
    assert "adapter-downloader" in str(rendered.manifests)


def test_the_example_of_the_catalogue_is_a_model_on_its_own_class() -> None:
    manifests = load_manifests([CATALOG])
    (model,) = manifests.models
    rendered = render_model(model, manifests.accelerators, default_context())
    assert rendered.problems == ()
    profile = manifests.engine_profile(model.spec.pools[0])
    assert profile is not None
    assert profile.weights_seconds == pytest.approx(65.5e9 / (2 * 3.35e12 * 0.85), rel=0.01)
    report = lint_paths([str(CATALOG)])
    assert report.problems == []
    assert len(report.remarks) == 1


def test_tenants_of_the_example_have_the_keys_of_its_first_lines() -> None:
    """`fairlead up` accepts them, and `fairlead lint` has nothing to say."""
    keys = re.findall(r"\bfl_example\w*", TENANTS.read_text())
    assert len(keys) == 3
    digests = {key_digest(key.encode(), LOCAL_PEPPER.encode()).hex() for key in keys}
    tenants = load_manifests([TENANTS]).tenants
    assert {key.digest for tenant in tenants for key in tenant.spec.keys} == digests
    assert lint_paths([str(TENANTS)]) == LintReport([], [], [f"{TENANTS}: ok, 2 ModelDeployments, 2 ModelTenants"])


def test_the_external_example_has_the_key_of_its_last_lines() -> None:
    (key,) = re.findall(r"\bfl_example\w*", EXTERNAL.read_text())
    manifests = load_manifests([EXTERNAL])
    (tenant,) = manifests.tenants
    assert [key.digest for key in tenant.spec.keys] == [key_digest(key.encode(), LOCAL_PEPPER.encode()).hex()]
    assert not tenant.to_tenant().may_leave_cluster
    assert lint_paths([str(EXTERNAL)]) == LintReport(
        [], [], [f"{EXTERNAL}: ok, 2 ModelDeployments, 1 ModelTenant, 1 ModelRoute"]
    )


def test_the_example_for_coding_agents_has_the_key_of_its_first_lines() -> None:
    (key,) = re.findall(r"\bfl_example\w*", CODING_AGENTS.read_text())
    (tenant,) = load_manifests([CODING_AGENTS]).tenants
    assert [key.digest for key in tenant.spec.keys] == [key_digest(key.encode(), LOCAL_PEPPER.encode()).hex()]
    counts = f"{CODING_AGENTS}: ok, 1 ModelDeployment, 1 ModelTenant, 1 ModelRoute"
    assert lint_paths([str(CODING_AGENTS)]) == LintReport([], [], [counts])


@pytest.mark.parametrize("path", [*ON_GPUS, *SIMULATED], ids=relative_path)
def test_lint_has_no_findings(path: Path) -> None:
    assert lint_paths([str(path)]) == LintReport([], [], [f"{path}: ok, 1 ModelDeployment"])


@pytest.mark.parametrize(
    ("real", "simulated"),
    [
        *(((f"{intent}/gpu.yaml"), f"{intent}/simulated.yaml") for intent in INTENTS),
        ("prefill-decode/gpu-sglang.yaml", "prefill-decode/simulated-mooncake.yaml"),
    ],
)
def test_simulated_example_has_the_shape_of_the_real_one(real: str, simulated: str) -> None:
    example, other = load_only_model(EXAMPLES / real), load_only_model(EXAMPLES / simulated)

    def shape(model: ModelDeployment) -> Any:
        pools = [
            (pool.name, pool.role, pool.min_replicas, pool.max_replicas, pool.parallelism) for pool in model.spec.pools
        ]
        return model.metadata.name, model.spec.kv_cache.transfer, model.spec.slo, model.spec.routing, pools

    assert example.spec.engine.type in (EngineType.VLLM, EngineType.SGLANG, EngineType.EXTERNAL)
    assert other.spec.engine.type in (EngineType.SIM, EngineType.EXTERNAL)
    if example.spec.is_external:
        assert example.spec.engine == other.spec.engine
        assert other.spec.pools[0] == example.spec.pools[0]  # the others are addresses, which only their owners know
    else:
        assert shape(other) == shape(example)


@pytest.mark.parametrize("path", [*ON_GPUS, *SIMULATED], ids=relative_path)
def test_operator_renders_the_example(path: Path) -> None:
    manifests = load_manifests([path])
    (model,) = manifests.models
    rendered = render_model(model, manifests.accelerators, default_context(leader_worker_sets=True))
    assert rendered.problems == ()
    kinds = {manifest["kind"] for manifest in rendered.manifests}
    workload = "LeaderWorkerSet" if path.parent.name == "multi-node" else "Deployment"
    assert (workload in kinds) is not model.spec.is_external
    on_gpus = [manifest for manifest in rendered.manifests if "nvidia.com/gpu" in str(manifest)]
    assert bool(on_gpus) is (path in ON_GPUS and not model.spec.is_external)


def test_external_engines_match_the_simulated_manifest_and_release() -> None:
    theirs = load_document(THEIRS.read_text())
    (pool,) = load_only_model(THEIRS.with_name("simulated.yaml")).spec.pools
    template = theirs["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert pool.selector is not None
    assert pool.selector.match_labels == template["metadata"]["labels"]
    assert pool.selector.port == container["ports"][0]["containerPort"]
    assert container["image"] == f"serving.fairlead.io/sim:{__version__}"
    served = load_only_model(THEIRS.with_name("simulated.yaml")).spec.model.engine_name
    assert f"--served-model-name={served}" in container["args"]


@pytest.mark.api_server
async def test_api_server_accepts_every_example(api_server: ApiServer) -> None:
    async with KubeApi(api_server.config(), SystemClock(), lambda: 0.5) as api:
        for crd in sorted((ROOT / "crds").glob("*.yaml")):
            await api.apply(load_document(crd.read_text()), "test")
        for resource in (MODEL_DEPLOYMENTS, ACCELERATOR_CLASSES, MODEL_ADAPTERS):
            await wait_until(partial(api.has_resource, resource))
        for path in [*FILES, *ON_GPUS, *SIMULATED, THEIRS, CLUSTER_ADAPTERS, STORED_ADAPTER]:
            for document in load_documents(path.read_text()):
                if resource_of(document).namespaced:
                    document["metadata"]["namespace"] = "default"
                await api.apply(document, "test", dry_run=True)
