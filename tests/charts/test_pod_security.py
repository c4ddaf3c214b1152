"""Every pod of the chart meets Pod Security `restricted` for any user id, and has resource
requests.
"""

import json
from pathlib import Path
from typing import Any

from fairlead.settings import GatewaySettings
from fairlead_gateway.messages import DRAIN_END_SECONDS, WORKER_QUERY_SECONDS
from fairlead_testing.kube.helm import pod_specs, render_chart

VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
"""Volume types that the chart uses; the level allows more."""


def test_every_pod_is_restricted(program: Path, case: Path) -> None:
    for name, pod in pod_specs(render_chart(program, f"--values={case}")).items():
        assert violations(pod) == [], name


def test_only_api_server_clients_get_a_token(program: Path, case: Path) -> None:
    for name, pod in pod_specs(render_chart(program, f"--values={case}")).items():
        speaks = name.endswith("-operator") or any(
            "--kube" in argument for argument in pod["containers"][0].get("args", [])
        )
        assert pod["automountServiceAccountToken"] is speaks, name


def test_every_pod_goes_where_the_values_place_it(program: Path) -> None:
    """A cluster whose nodes all have taints starts no pod without tolerations, such as that of
    `helm test`.
    """
    placed = {
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "priorityClassName": "high",
    }
    components = ("operator", "gateway", "indexer", "autoscaler", "redis")
    values = [f"--set-json={name}={json.dumps(placed)}" for name in components]
    specs = pod_specs(render_chart(program, *values))
    assert {name.partition("fairlead-")[2] for name in specs} == {*components, "test"}
    for name, pod in specs.items():
        assert {field: pod.get(field) for field in placed} == placed, name


def test_no_service_variable_collides_with_ours(program: Path, case: Path) -> None:
    """A Service ``fairlead-gateway`` would become the variable ``FAIRLEAD_GATEWAY_PORT``."""
    for name, pod in pod_specs(render_chart(program, f"--values={case}")).items():
        assert pod["enableServiceLinks"] is False, name


def test_every_server_has_probes_and_requests_by_default(program: Path) -> None:
    for name, pod in pod_specs(render_chart(program)).items():
        for container in pod["containers"]:
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}, name
            assert "memory" in container["resources"]["limits"], name
            if not name.startswith("Pod "):
                assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys(), name


def test_terminating_pod_has_time_for_requests_in_flight(program: Path) -> None:
    """SIGKILL comes after the drain, the errors at its end, and slow exits."""
    exit_seconds = DRAIN_END_SECONDS + 2 * WORKER_QUERY_SECONDS
    for values, drain_seconds in (("gateway.leaveSeconds=20", 600), ("gateway.drainSeconds=7200", 7_200)):
        gateway = pod_specs(render_chart(program, f"--set={values}"))["Deployment fairlead-gateway"]
        container = gateway["containers"][0]
        leave = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        environ = {variable["name"]: variable.get("value", "") for variable in container["env"]}
        assert (
            GatewaySettings(drain_timeout=environ["FAIRLEAD_DRAIN_TIMEOUT"]).limits()["drain_seconds"] == drain_seconds
        )
        assert gateway["terminationGracePeriodSeconds"] > leave + drain_seconds + exit_seconds


def violations(spec: dict[str, Any]) -> list[str]:
    """Returns the violations of the level. No user id is set: a site may choose any."""
    problems = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    pod = spec["securityContext"]
    problems += (
        [f"volume of {kind}" for volume in spec["volumes"] for kind in volume.keys() - {"name"} - VOLUMES]
        if ("volumes" in spec)
        else []
    )
    problems += [name for name in ("runAsUser", "runAsGroup", "fsGroup") if name in pod]
    if pod.get("runAsNonRoot") is not True or pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
        problems.append("the pod's security context")
    for container in spec["containers"]:
        allowed = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        if container["securityContext"] != allowed:
            problems.append(f"the security context of {container['name']}")
    return problems
