"""The indexer of the chart: when it runs, its arguments, its rights, and its alerts."""

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.resources import MODEL_DEPLOYMENTS, PODS, SERVICE_ACCOUNTS, Manifest
from fairlead.runtime.clock import SystemClock
from fairlead.settings import IndexerSettings, variable_name
from fairlead_kvstore.indexer.cli import _parse_arguments
from fairlead_testing.engines.disaggregated import EngineProcess, engine_process
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.helm import (
    CHART_FOLDER,
    ChartTools,
    apply_rights,
    kubeconfig_for_account,
    pod_specs,
    render_chart,
)
from fairlead_testing.kube.manifests import manifest, simulated_model
from fairlead_testing.kvstore.indexer_harness import IndexerProcess, indexer_process
from fairlead_testing.prometheus import AlertRules, SeriesRecording, expression_names, parse_scrape
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.waiting import wait_until
from fairlead_testing.yaml_documents import load_document

HEALTHY: dict[str, str] = load_document((Path(__file__).parent / "alerts.yaml").read_text())["healthy"]
EVENTS = ("--kv-events", "0", "--kv-replay", "0", "--block-size", "16")
PROMPT = list(range(100, 165))
SPACE = "indexed"
OPTIONAL = {"FAIRLEAD_CLIENT_NAMES", "FAIRLEAD_ENDPOINT_NAMESPACES"}
"""Variables that are rendered only with a value."""
SELDOM = ("unreadable_total",)
"""Metrics that exist only after their event."""
READY = {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
Groups = Callable[..., list[dict[str, Any]]]


# --- what the chart makes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    ["redis.enabled=false", "indexer.enabled=false", "indexer.enabled=false,redis.enabled=false,redis.urlSecret=ours"],
)
def test_no_indexer_without_redis_or_if_disabled(program: Path, values: str) -> None:
    everything = "serviceMonitors.enabled=true,alerts.enabled=true,watchNamespaces={a,b}"
    manifests = render_chart(program, f"--set={values}", f"--set={everything}")
    assert not [document for document in manifests if "indexer" in str(document).lower()]
    assert "FairleadIndex" not in str(manifests)


@pytest.mark.parametrize("values", ["redis.urlSecret=ours", "redis.url=redis://ours:6379/0"])
def test_external_redis_is_used_by_gateways_and_indexers(program: Path, values: str) -> None:
    specs = pod_specs(render_chart(program, f"--set=redis.enabled=false,{values}"))
    both = [specs[f"Deployment fairlead-{name}"]["containers"][0]["env"] for name in ("gateway", "indexer")]
    variables = [{variable["name"]: variable for variable in env} for env in both]
    for name in ("FAIRLEAD_REDIS_URL", "FAIRLEAD_HASH_SECRET"):
        assert variables[0][name] == variables[1][name]


def test_indexer_accepts_its_variables_and_options(program: Path, case: Path) -> None:
    specs = pod_specs(render_chart(program, f"--values={case}"))
    of = {name.rpartition("-")[2]: pod for name, pod in specs.items()}
    if "indexer" not in of:
        assert case.stem == "smallest"
        return
    (container,) = of["indexer"]["containers"]
    names = {variable["name"] for variable in container["env"]}
    known = {variable_name(name) for name in IndexerSettings.__dataclass_fields__}
    assert names | OPTIONAL == (known | OPTIONAL) - {"FAIRLEAD_COMPILED"}, (
        "in an image, compiled code is in the packages"
    )
    assert names <= known
    options, follows = _parse_arguments(container["args"]), [word for word in container["args"] if "listen" not in word]
    assert options.listen == f"0.0.0.0:{container['ports'][0]['containerPort']}"
    gateways = of["gateway"]["containers"][0]["args"]
    assert set(follows) <= set(gateways), "another fleet than the gateways'"
    if options.fleet:
        assert str(Path(options.fleet).parent) in [mount["mountPath"] for mount in container["volumeMounts"]]
        (volume,) = (volume for volume in of["indexer"]["volumes"] if volume["name"] == "fleet")
        assert volume in of["gateway"]["volumes"]


# --- on a real API server -----------------------------------------------------------------------------------------------


async def pod(engine: EngineProcess) -> Manifest:
    """As the operator makes one; its ports are what the engine found free."""
    async with httpx.AsyncClient() as client:
        sources = (await client.get(f"{engine.url}/kv_event_sources")).json()["0"]
    ports = {"port": engine.url, "kv-events-port": sources["endpoint"], "kv-replay-port": sources["replay_endpoint"]}
    marks = {f"fairlead.io/{name}": str(urlsplit(url).port or url.rpartition(":")[2]) for name, url in ports.items()}
    labels = {"model": "tiny", "pool": "main", "role": "Serve", "endpoint": "true"}
    metadata = {"labels": {f"fairlead.io/{name}": value for name, value in labels.items()}, "annotations": marks}
    return manifest(PODS, "p", SPACE, metadata, spec={"containers": [{"name": "engine", "image": "i"}]})


async def complete(engine: EngineProcess) -> None:
    async with httpx.AsyncClient(timeout=60.0) as client:
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 1}
        (await client.post(f"{engine.url}/v1/completions", json=body)).raise_for_status()


async def wait_metrics(indexer: IndexerProcess, **figures: float) -> None:
    """Waits until the indexer reports these metrics of the model."""

    async def so() -> bool:
        return [await indexer.metric(name, f"{SPACE}/tiny") for name in figures] == list(figures.values())

    await wait_until(so)


@pytest.mark.api_server
@pytest.mark.timeout(300)
async def test_indexer_finds_engines_with_exactly_its_permissions(
    api_server: ApiServer, program: Path, server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = render_chart(program, f"--namespace={SPACE}")
    async with KubeApi(api_server.config(), SystemClock(), lambda: 0.5) as api, engine_process(*EVENTS) as engine:
        await apply_rights(api, manifests, SPACE)
        await api.apply(manifest(SERVICE_ACCOUNTS, "default", SPACE), "test")
        (tmp_path / "kubeconfig").write_text(await kubeconfig_for_account(api_server, SPACE, "fairlead-indexer"))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        async with indexer_process("--kube", "--redis", server.url) as indexer:
            await api.create(simulated_model("tiny", SPACE), "test")
            await api.create(await pod(engine), "test")
            await api.patch_merge(PODS, SPACE, "p", {"status": READY}, "test", subresource="status")
            await wait_metrics(indexer, leads=1.0, instances=1.0, connected=1.0)
            await complete(engine)
            await wait_metrics(indexer, blocks=4.0, incomplete=0.0)
            ready = await indexer.get("/readyz")
            assert (ready.status_code, ready.text) == (200, "ready\n")
            await api.delete(PODS, SPACE, "p")

            async def is_gone() -> bool:
                return not (await indexer.metric("blocks", f"{SPACE}/tiny") > 0)

            await wait_until(is_gone)
            await api.delete(MODEL_DEPLOYMENTS, SPACE, "tiny")


# --- its metrics, and its alerts ----------------------------------------------------------------------------------------


@asynccontextmanager
async def reading(folder: Path, server: Valkey) -> AsyncIterator[tuple[IndexerProcess, EngineProcess]]:
    """An indexer that has read all that its one engine has published, and measured its loop."""
    async with engine_process(*EVENTS) as engine:
        await complete(engine)
        instances = [{"url": engine.url, "id": "e"}]
        (folder / "fleet.yaml").write_text(
            json.dumps({"models": [{"name": "tiny", "namespace": SPACE, "instances": instances}]})
        )
        async with indexer_process("--fleet", str(folder / "fleet.yaml"), "--redis", server.url) as indexer:
            await wait_metrics(indexer, leads=1.0, blocks=4.0, incomplete=0.0)

            async def measured() -> bool:
                return "\nfairlead_indexer_loop_lag_seconds " in (await indexer.get("/metrics")).text

            await wait_until(measured)
            yield indexer, engine


async def test_unreachable_engine_fires_only_its_alert(
    groups: Groups, assert_reported: Callable[..., None], tools: ChartTools, tmp_path: Path, server: Valkey
) -> None:
    """The series come from a real indexer, prolonged to an hour."""
    async with reading(tmp_path, server) as (indexer, engine):
        before = (await indexer.get("/metrics")).text
        engine.process.kill()
        await wait_metrics(indexer, connected=0.0, incomplete=1.0)
        after = (await indexer.get("/metrics")).text
    well, deaf = (parse_scrape(text, namespace="fairlead", pod="i-1") for text in (before, after))
    rules = AlertRules(tools.promtool, groups(), tmp_path)
    names = {name for rule in rules.alerts.values() for name, _ in expression_names(rule["expr"]).metrics}
    ours = {name for name in names if name.startswith("fairlead_indexer_")}
    exported = {name for name, _ in well}
    assert ours
    assert ours <= exported
    guide = (CHART_FOLDER.parents[1] / "docs" / "concepts" / "kv-index.md").read_text().partition("| metric (")[2]
    rows = [row.split("|")[1] for row in guide.partition("\n\n")[0].splitlines()[2:]]
    listed = {f"fairlead_indexer_{name}" for row in rows for name in re.findall(r"`(\w+)", row)}
    assert listed - {f"fairlead_indexer_{name}" for name in SELDOM} == exported
    assert_reported("fairlead_indexer_", well)
    others = {
        key.replace("{", '{namespace="fairlead",'): value for key, value in HEALTHY.items() if "_indexer_" not in key
    }
    healthy, silent = SeriesRecording(), SeriesRecording()
    healthy.hold(60, well)
    silent.hold(60, deaf)
    rules.expect_firing(
        {
            "healthy": (healthy.series(names) | others, healthy.minutes, []),
            "deaf": (silent.series(names) | others, silent.minutes, ["FairleadIndexIncomplete"]),
        }
    )
