"""Every query of the chart's dashboards and alerts at a real Prometheus.

It scrapes the installation. A query of a dashboard returns series. So does every selector in the
expression of an alert; the whole expression mostly returns nothing, since nothing is wrong. What
stays empty without a failure is listed below, with the reason.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.kube.cluster_access.kubectl import Kubectl, eventually
from e2e.kube.cluster_access.prometheus_server import PrometheusServer
from e2e.kube.workloads.client_pods import HOST, ClientPod, StreamSession
from e2e.kube.workloads.helm_release import CHART, NAMESPACE, HelmRelease
from e2e.kube.workloads.manifests import Manifest, model, resource
from e2e.kube.workloads.model_deployments import DeployedModel
from fairlead_testing.kube.helm import render_chart
from fairlead_testing.yaml_documents import load_document

pytestmark = [pytest.mark.lane("dashboards"), pytest.mark.extended]

BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))}
ALERTS = [
    rule
    for path in sorted((CHART / "alerts").glob("*.yaml"))
    for group in load_document(path.read_text())["groups"]
    for rule in group["rules"]
]
CLASS = "e2e-priced"
RANGE = "30s"
_SELECTOR = re.compile(r"fairlead_\w+\{[^}]*\}")
_SECONDS = 60.0
_REFUSED = f"""
import json, urllib.error, urllib.request
url, fields = "http://{HOST}/v1/chat/completions", {{"content-type": "application/json"}}
for more, body in (({{}}, {{}}), ({{"authorization": "Bearer KEY"}}, {{"model": "MODEL", "messages": []}})):
    try:
        urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), {{**fields, **more}}), timeout=10)
    except urllib.error.HTTPError as error:
        print(error.code)
"""
"""Sends a request without a key, and one without messages."""
_FAILED_ENGINE = "an engine must fail"
_REFUSED_FOR_LOAD = "requests must be refused for lack of engines"
_CONDITION = "no model is in this condition"
_REPLICAS = "the autoscaler must write a number of replicas, or fail to"
_NO_TOKEN = "series of tenants need a token, and the API server's proxy passes none to the gateway"
_TELEMETRY = "access log and tracing are off by default"
_ALL = f'{{namespace="{NAMESPACE}"}}'
_SELECTED = f'{{namespace="{NAMESPACE}",'
EXPECTED_EMPTY = {
    "Fairlead / Control plane, Written replica counts, {{model}} {{direction}}": _REPLICAS,
    "Fairlead / Control plane, Written replica counts, {{model}} failed": _REPLICAS,
    "Fairlead / Control plane, Dropped log lines and spans, {{pod}} lines": _TELEMETRY,
    "Fairlead / Control plane, Dropped log lines and spans, {{pod}} spans": _TELEMETRY,
    f"FairleadAutoscalerRefused, fairlead_autoscaler_write_errors_total{_ALL}": _REPLICAS,
    f"FairleadTelemetryLost, fairlead_gateway_access_log_dropped_total{_ALL}": _TELEMETRY,
    f"FairleadTelemetryLost, fairlead_gateway_spans_dropped_total{_ALL}": _TELEMETRY,
    "Fairlead / Engines, Ejections, {{model}} {{reason}}": _FAILED_ENGINE,
    "Fairlead / Engines, Retries, {{model}} {{reason}}": _FAILED_ENGINE,
    f'FairleadHandoffsFail, fairlead_gateway_handoffs_total{_SELECTED}outcome="failed"}}': _FAILED_ENGINE,
    f'FairleadNoReadyInstance, fairlead_gateway_rejected_total{_SELECTED}kind="no_ready_instance"}}': _REFUSED_FOR_LOAD,
    f'FairleadOverloaded, fairlead_gateway_rejected_total{_SELECTED}kind="overloaded"}}': _REFUSED_FOR_LOAD,
    "Fairlead / Tenants, Requests over a limit (429), by reason, {{kind}}": "a tenant must be over a limit",
    **{
        f"Fairlead / Tenants, {panel}": _NO_TOKEN
        for panel in (
            *("Requests, {{tenant}}", "Tokens, {{tenant}} prompt", "Tokens, {{tenant}} generated"),
            *("Share of cached prompt tokens, {{tenant}}", "Cost, {{tenant}}", "Saved by cached tokens, {{tenant}}"),
            *("Engines in use, {{tenant}}", "Share of the budget left, {{tenant}}"),
        )
    },
    **{
        f"{alert}, fairlead_gateway_budget_used_ratio{_ALL}": _NO_TOKEN
        for alert in ("FairleadBudgetNearlyUsed", "FairleadBudgetUsed")
    },
    **{
        f"{alert}, fairlead_operator_model_condition{_SELECTED}{condition}}}": _CONDITION
        for alert, condition in (
            ("FairleadAutoscalerAtMaximum", 'type="Autoscaling",reason="AtMaximum"'),
            ("FairleadModelDegraded", 'type="Ready",reason="Degraded"'),
            ("FairleadModelDown", 'type="Ready",reason=~"NoInstance|NoEndpoint"'),
            ("FairleadModelStalled", 'type="Stalled"'),
            ("FairleadModelStartsLong", 'type="Ready",reason="Starting"'),
        )
    },
}
"""Queries that return no series on a healthy installation, with the reason."""


def priced_engine() -> Manifest:
    return resource("AcceleratorClass", CLASS, costPerHour="1.50", profile={"preset": "tiny-cpu"})


def watched_model() -> Manifest:
    """Returns a model with all that dashboards show: latency targets, scaling, hand-offs."""
    pools = [
        {"name": role.lower(), "role": role, "acceleratorClassName": CLASS, "minReplicas": 1, "maxReplicas": 2}
        for role in ("Prefill", "Decode")
    ]
    slo = {"ttft": "2s", "target": "95%"}
    return model("watched", pools=pools, slo=slo, autoscaling={"mode": "Auto"}, kvCache={"transfer": "NIXL"})


def queries() -> Iterator[tuple[str, str]]:
    """Yields name and expression of each query."""
    for board in BOARDS.values():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                expression = target["expr"].replace("$__rate_interval", RANGE).replace("$namespace", NAMESPACE)
                yield (
                    f"{board['title']}, {panel['title']}, {target['legendFormat']}",
                    expression.replace("$model", ".*").replace("$tenant", ".*"),
                )
    for rule in ALERTS:
        for selector in sorted(set(_SELECTOR.findall(rule["expr"].replace("NAMESPACE", NAMESPACE)))):
            yield f"{rule['alert']}, {selector}", selector


def variables() -> Iterator[str]:
    """Yields the selectors of the dashboards' variables, without that of tenants (`_NO_TOKEN`)."""
    for board in BOARDS.values():
        for variable in board["templating"]["list"]:
            if variable["type"] == "query" and variable["name"] != "tenant":
                yield re.sub(r"label_values\((.*), \w+\)", r"\1", variable["query"]["query"]).replace(
                    "$namespace", NAMESPACE
                )


def monitors(here: Kubectl) -> list[Manifest]:
    """Returns the ServiceMonitors of the chart."""
    helm = shutil.which("helm", path=here.environ["PATH"])
    assert helm is not None
    found = render_chart(Path(helm), "--set=serviceMonitors.enabled=true")
    return [manifest for manifest in found if manifest["kind"] == "ServiceMonitor"]


def test_every_query_of_dashboards_and_alerts_returns_series(here: Kubectl, installed: HelmRelease) -> None:
    here.apply(priced_engine(), watched_model())
    client = ClientPod(here, installed).start()
    name = f"{here.namespace}/watched"
    client.first_token(name)
    watched = DeployedModel(here, "watched")  # never settled, since its scaling is a condition, too
    eventually(
        "it is ready", lambda: watched.condition("Ready").get("status") == "True", describe=lambda: str(watched.get())
    )
    long = {"repeats": 400, "conversations": 3}
    with PrometheusServer(installed.here, monitors(here)) as prometheus:
        jobs = prometheus.wait_until_scraped(_SECONDS)
        assert {job.removeprefix("fairlead-").removesuffix("-manage") for job in jobs} == {
            "operator",
            "gateway",
            "indexer",
            "autoscaler",
        }
        with StreamSession(client, name, rate=2.0, tokens=20, prompt=long) as streams:
            refused = _REFUSED.replace("KEY", client.key).replace("MODEL", name)
            assert here.python(client.name, refused).split() == ["401", "400"]
            empty: list[str] = []

            def all_answer() -> bool:
                empty[:] = [
                    what for what, query in queries() if what not in EXPECTED_EMPTY and not prometheus.series(query)
                ]
                return not empty

            eventually(
                "every query returns series", all_answer, seconds=_SECONDS, every=2.0, describe=lambda: "\n".join(empty)
            )
        assert all(prometheus.series(selector) for selector in variables())
        for rule in ALERTS:
            prometheus.series(rule["expr"].replace("NAMESPACE", NAMESPACE))
    assert streams.failures == []


def test_list_of_empty_queries_names_queries_that_exist() -> None:
    assert EXPECTED_EMPTY.keys() <= {what for what, _ in queries()}
