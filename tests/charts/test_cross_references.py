"""References within the chart: selected objects exist, names match, and switches have their effect."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from fairlead_testing.kube.helm import pod_specs, render_chart
from fairlead_testing.yaml_documents import load_documents
from scripts.generators.chart_values import Values

Manifests = list[dict[str, Any]]
TEMPLATES = Path(__file__).parents[2] / "charts" / "fairlead" / "templates"


def of(manifests: Manifests, *kinds: str) -> Manifests:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def labelled(manifests: Manifests) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Labels and spec of the pods of each Deployment."""
    deployments = of(manifests, "Deployment")
    return [
        (manifest["spec"]["template"]["metadata"]["labels"], manifest["spec"]["template"]["spec"])
        for manifest in deployments
    ]


def chosen(manifests: Manifests, selector: dict[str, str]) -> list[dict[str, Any]]:
    return [spec for labels, spec in labelled(manifests) if selector.items() <= labels.items()]


def ports(spec: dict[str, Any]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for container in spec["containers"] for port in container["ports"]}


def test_services_budgets_and_policies_select_one_component(program: Path, case: Path) -> None:
    manifests = render_chart(program, f"--values={case}")
    for manifest in of(manifests, "Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment"):
        selector = manifest["spec"].get("selector") or manifest["spec"]["podSelector"]
        (spec,) = chosen(manifests, selector.get("matchLabels", selector))
        component = manifest["metadata"]["labels"]["app.kubernetes.io/component"]
        assert [container["name"] for container in spec["containers"]] == [component]


def test_named_ports_exist_in_the_pod(program: Path, case: Path) -> None:
    manifests = render_chart(program, f"--values={case}")
    for manifest in of(manifests, "Service"):
        (spec,) = chosen(manifests, manifest["spec"]["selector"])
        assert {port["targetPort"] for port in manifest["spec"]["ports"]} <= ports(spec).keys()
    for manifest in of(manifests, "NetworkPolicy"):
        (spec,) = chosen(manifests, manifest["spec"]["podSelector"]["matchLabels"])
        open_ports = {port["port"] for rule in manifest["spec"]["ingress"] for port in rule["ports"]}
        assert open_ports == ports(spec).keys(), "a port that nobody may reach, or a rule for none"
    for spec in pod_specs(manifests).values():
        for container in spec["containers"]:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = container.get(probe, {})
                for how in ("httpGet", "tcpSocket"):
                    assert how not in asked or asked[how]["port"] in ports(spec)


def test_budget_exists_only_for_several_replicas(program: Path) -> None:
    budgets = of(render_chart(program), "PodDisruptionBudget")
    assert {budget["metadata"]["name"] for budget in budgets} == {
        "fairlead-operator",
        "fairlead-gateway",
        "fairlead-indexer",
        "fairlead-autoscaler",
    }
    assert all(budget["spec"]["maxUnavailable"] == 1 for budget in budgets)
    assert not of(
        render_chart(program, "--set=operator.replicas=1,gateway.replicas=1,indexer.replicas=1,autoscaler.replicas=1"),
        "PodDisruptionBudget",
    )
    scaled = render_chart(program, "--set=gateway.replicas=1,gateway.autoscaling.enabled=true")
    assert {manifest["metadata"]["name"] for manifest in of(scaled, "PodDisruptionBudget")} >= {"fairlead-gateway"}


def test_unready_pods_do_not_block_the_drain_of_their_node(program: Path) -> None:
    budgets = of(render_chart(program), "PodDisruptionBudget")
    assert len(budgets) >= 3
    assert {budget["spec"]["unhealthyPodEvictionPolicy"] for budget in budgets} == {"AlwaysAllow"}


def test_policies_admit_required_clients_and_close_redis_egress(program: Path) -> None:
    specs = {manifest["metadata"]["name"]: manifest["spec"] for manifest in of(render_chart(program), "NetworkPolicy")}
    public, manage = specs["fairlead-gateway"]["ingress"]
    assert "from" not in public, "clients come from anywhere"
    assert manage["from"] == [{"podSelector": {}}]
    (redis,) = specs["fairlead-redis"]["ingress"]
    peers = [peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in redis["from"]]
    assert peers == ["gateway", "indexer"]
    (probes,) = specs["fairlead-indexer"]["ingress"]
    assert probes["from"] == [{"podSelector": {}}]
    assert specs["fairlead-redis"]["egress"] == []
    assert not of(render_chart(program, "--set=networkPolicies.enabled=false"), "NetworkPolicy")


def test_autoscaled_component_sets_no_replicas(program: Path) -> None:
    manifests = render_chart(program, "--set=gateway.autoscaling.enabled=true,gateway.autoscaling.cpuPercent=55")
    (scaler,) = of(manifests, "HorizontalPodAutoscaler")
    target = scaler["spec"]["scaleTargetRef"]
    (scaled,) = (manifest for manifest in of(manifests, "Deployment") if manifest["metadata"]["name"] == target["name"])
    assert "replicas" not in scaled["spec"]
    (metric,) = scaler["spec"]["metrics"]
    assert metric["resource"] == {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 55}}
    (container,) = scaled["spec"]["template"]["spec"]["containers"]
    assert "cpu" in container["resources"]["requests"], "utilization is a share of what is requested"
    assert not of(render_chart(program), "HorizontalPodAutoscaler")


def test_monitors_find_each_metrics_port_once(program: Path) -> None:
    manifests = render_chart(program, "--set=serviceMonitors.enabled=true,serviceMonitors.labels.release=prometheus")
    monitors = of(manifests, "ServiceMonitor")
    assert len(monitors) == 4
    for monitor in monitors:
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        (endpoint,) = monitor["spec"]["endpoints"]
        assert (endpoint["path"], endpoint["honorLabels"]) == ("/metrics", True)
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (service,) = (each for each in of(manifests, "Service") if wanted <= each["metadata"]["labels"].items())
        assert [port["name"] for port in service["spec"]["ports"]] == [endpoint["port"]]


@pytest.mark.parametrize("port", [80, 443])
def test_ingress_routes_lead_to_the_gateway_service(program: Path, port: int) -> None:
    on = ("ingress.enabled=true,ingress.host=llm.example.com,ingress.tlsSecret=cert", "httpRoute.enabled=true")
    manifests = render_chart(program, *(f"--set={setting}" for setting in on), f"--set=gateway.service.port={port}")
    (ingress,) = of(manifests, "Ingress")
    (rule,) = ingress["spec"]["rules"]
    assert rule["host"] == "llm.example.com"
    assert ingress["spec"]["tls"] == [{"secretName": "cert", "hosts": ["llm.example.com"]}]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    (route,) = of(manifests, "HTTPRoute")
    (reference,) = route["spec"]["rules"][0]["backendRefs"]
    assert (reference["name"], reference["port"]) == (backend["name"], backend["port"]["number"])
    (service,) = (manifest for manifest in of(manifests, "Service") if manifest["metadata"]["name"] == backend["name"])
    assert [port["port"] for port in service["spec"]["ports"]] == [port]
    assert not of(render_chart(program), "Ingress", "HTTPRoute")


@pytest.mark.parametrize(
    "parent",
    [
        {"name": "one"},
        {"name": "one", "namespace": "edge", "sectionName": "https", "port": 443},
        {"name": "mesh", "group": "", "kind": "Service"},
    ],
)
def test_route_writes_out_what_the_gateway_api_adds_in_lists(program: Path, parent: dict[str, str]) -> None:
    """Argo CD compares lists as a whole, so a default that is left out shows as drift for ever."""
    settings = [f"--set=httpRoute.parentRefs[0].{field}={value}" for field, value in parent.items()]
    (route,) = of(render_chart(program, "--set=httpRoute.enabled=true", *settings), "HTTPRoute")
    assert route["spec"]["parentRefs"] == [{"group": "gateway.networking.k8s.io", "kind": "Gateway", **parent}]
    (rule,) = route["spec"]["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/"}}]
    (backend,) = rule["backendRefs"]
    assert backend.items() >= {"group": "", "kind": "Service", "weight": 1}.items()


def test_mirror_lists_every_image_and_every_pod_can_pull(program: Path) -> None:
    manifests = render_chart(
        program, "--set=global.imageRegistry=mirror.example.com/llm", "--set=global.imagePullSecrets={one,two}"
    )
    specs = pod_specs(manifests)
    assert len(specs) == 6, "operator, gateway, indexer, autoscaler, Redis and helm's test"
    for name, spec in specs.items():
        assert spec["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}], name
        for container in spec["containers"]:
            assert container["image"].startswith("mirror.example.com/llm/"), name
    operator = specs["Deployment fairlead-operator"]["containers"][0]
    (images,) = (variable["value"] for variable in operator["env"] if variable["name"] == "FAIRLEAD_ENGINE_IMAGES")
    by_engine = dict(image.split("=") for image in images.split(","))
    assert set(by_engine) == {"vllm", "sglang", "sim"}
    assert by_engine["sim"].startswith("mirror.example.com/llm/sim:")


def test_digest_takes_precedence_over_tag(program: Path) -> None:
    digest = "sha256:" + "0" * 64
    specs = pod_specs(render_chart(program, f"--set=gateway.image.digest={digest},gateway.image.tag=x"))
    assert specs["Deployment fairlead-gateway"]["containers"][0]["image"].endswith(f"/gateway@{digest}")


def test_autoscaler_reads_every_gateway_and_writes_only_workloads(program: Path) -> None:
    (container,) = pod_specs(render_chart(program, "--set=autoscaler.freeze=true"))["Deployment fairlead-autoscaler"][
        "containers"
    ]
    assert "--gateway=http://fairlead-gateway-manage.fairlead.svc:8081" in container["args"]
    assert {"name": "FAIRLEAD_SCALING_FREEZE", "value": "1"} in container["env"]
    specs = [pod_specs(render_chart(program, f"--set=installation={name}")) for name in ("", "other")]
    ids = [
        {
            variable["value"]
            for part in ("operator", "autoscaler")
            for variable in each[f"Deployment fairlead-{part}"]["containers"][0]["env"]
            if variable["name"] == "FAIRLEAD_INSTALLATION"
        }
        for each in specs
    ]
    assert ids == [{"fairlead.fairlead"}, {"other"}]
    for off in ("autoscaler.enabled=false", "gateway.fleet.models[0].name=tiny"):
        manifests = render_chart(program, f"--set={off}")
        assert not [manifest for manifest in manifests if "autoscaler" in manifest["metadata"]["name"]], off


def test_helm_test_is_a_hook_that_stays_only_after_failure(program: Path) -> None:
    (pod,) = of(render_chart(program), "Pod")
    assert pod["metadata"]["annotations"] == {
        "helm.sh/hook": "test",
        "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded",
    }


def test_no_chart_object_blocks_or_survives_the_uninstall(program: Path) -> None:
    """No object has finalizers or deletion hooks or owns CRDs, so models and engines stay."""
    for manifest in render_chart(
        program, "--set=alerts.enabled=true,dashboards.enabled=true,serviceMonitors.enabled=true"
    ):
        assert "finalizers" not in manifest["metadata"]
        assert not {"pre-delete", "post-delete"} & set(
            manifest["metadata"].get("annotations", {}).get("helm.sh/hook", "").split(",")
        )
        assert manifest["kind"] not in ("CustomResourceDefinition", "ModelDeployment", "AcceleratorClass")


def value_paths(section: BaseModel, prefix: str = "") -> Iterator[str]:
    """Yields the path of each value, such as `gateway.image.tag`."""
    for name, field in type(section).model_fields.items():
        value, path = getattr(section, name), f"{prefix}{field.alias}"
        if isinstance(value, BaseModel):
            yield from value_paths(value, f"{path}.")
        else:
            yield path


def read_paths() -> Iterator[str]:
    """Yields the paths that templates read, also through a variable or a helper for sections."""
    helpers = (TEMPLATES / "_helpers.tpl").read_text()
    of_helper = {
        name: re.findall(rf"{variable}\.(\w+)", helpers.partition(f'define "{name}"')[2].partition("{{- define")[0])
        for name, variable in (("fairlead.image", r"\$image"), ("fairlead.placement", r"(?<![\w$])"))
    }
    for path in TEMPLATES.rglob("*.*"):
        text = path.read_text()
        for variable, section in re.findall(r"(\$\w+) := \.Values\.([\w.]+)", text):
            text = re.sub(rf"{re.escape(variable)}\b", f".Values.{section}", text)
        yield from re.findall(r"\.Values\.([\w.]+)", text)
        for helper, names in of_helper.items():
            for section in re.findall(rf'include "{helper}" (?:\(list \. )?\.Values\.([\w.]+)', text):
                yield from (f"{section}.{name}" for name in names)


def test_templates_read_every_value() -> None:
    of_parent_charts = {"enabled"}
    assert set(value_paths(Values())) - set(read_paths()) == of_parent_charts


def manifests_of_page(page: str, file: str) -> list[dict[str, Any]]:
    """Returns the documents of a block on a how-to page."""
    text = (TEMPLATES.parents[2] / "docs" / "how-to" / page).read_text(encoding="utf-8")
    (found,) = re.findall(rf"^```yaml\n# {file}\n(.+?)^```", text, re.MULTILINE | re.DOTALL)
    return list(load_documents(found))


def test_route_on_the_tls_page_names_the_gateways_service(program: Path) -> None:
    route, grant = manifests_of_page("tls-and-ingress.md", "own-route.yaml")
    services = of(render_chart(program), "Service")
    (backend,) = route["spec"]["rules"][0]["backendRefs"]
    (service,) = [service for service in services if service["metadata"]["name"] == backend["name"]]
    assert [port["port"] for port in service["spec"]["ports"]] == [backend["port"]]
    assert grant["spec"]["to"] == [{"group": "", "kind": "Service", "name": backend["name"]}]
    assert grant["metadata"]["namespace"] == backend["namespace"]


def test_policy_for_clients_on_the_hardening_page_opens_the_gateways_port_alone(program: Path, case: Path) -> None:
    ((dns, to_gateway),) = [
        policy["spec"]["egress"] for policy in manifests_of_page("hardening.md", "clients-egress.yaml")
    ]
    (peer,) = to_gateway["to"]
    (spec,) = chosen(render_chart(program, f"--values={case}"), peer["podSelector"]["matchLabels"])
    assert [port["port"] for port in to_gateway["ports"]] == [ports(spec)["http"]]
    assert {port["port"] for port in dns["ports"]} == {53}
