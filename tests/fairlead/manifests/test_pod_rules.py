"""Rules of rendered pods: what a server or a node refuses, and references that lead nowhere."""

from typing import Any

import pytest

from fairlead.manifests.pod_rules import lint_pod, selects

RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def pod(engine: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    container = {"name": "engine", "securityContext": RESTRICTED, **(engine or {})}
    context = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    labels = {"app": "mine", "tier": "gpu"}
    return {
        "metadata": {"labels": labels},
        "spec": {"securityContext": context, "containers": [container], "volumes": [], **spec},
    }


def said(template: dict[str, Any]) -> list[tuple[bool, str]]:
    return [(note.is_problem, note.message) for note in lint_pod(template)]


@pytest.mark.parametrize(
    ("engine", "spec", "part"),
    [
        ({"volumeMounts": [{"name": "gone", "mountPath": "/x"}]}, {}, "/x is of the volume gone"),
        ({"volumeDevices": [{"name": "gone", "devicePath": "/dev/x"}]}, {}, "/dev/x is of the volume gone"),
        ({"resources": {"claims": [{"name": "no"}]}}, {"resourceClaims": [{"name": "nic"}]}, "no resource claim no"),
        ({}, {"initContainers": [{"name": "engine", "securityContext": RESTRICTED}]}, "2 containers are called engine"),
        ({"securityContext": {**RESTRICTED, "privileged": True}}, {}, "cannot have allowPrivilegeEscalation: false"),
        (
            {"securityContext": {**RESTRICTED, "capabilities": {"add": ["CAP_SYS_ADMIN"]}}},
            {},
            "cannot have allowPrivilegeEscalation: false",
        ),
        ({"securityContext": {**RESTRICTED, "runAsUser": 0}}, {}, "the node starts no such container"),
        (
            {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1500m"}}},
            {},
            "may be at most its limit of 1500m",
        ),
        (
            {"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": 1073741824}}},
            {},
            "may be at most its limit of 1073741824",
        ),
        (
            {"resources": {"requests": {"nvidia.com/gpu": 1}, "limits": {"nvidia.com/gpu": "2"}}},
            {},
            "must be its limit of 2",
        ),
    ],
)
def test_what_a_server_or_a_node_refuses_is_a_problem(engine: dict[str, Any], spec: dict[str, Any], part: str) -> None:
    assert any(is_problem and part in message for is_problem, message in said(pod(engine, **spec)))


@pytest.mark.parametrize(
    ("engine", "missing"),
    [
        ({"env": [{"name": "A", "value": "$(B)"}, {"name": "B", "value": "1"}]}, ["B"]),
        ({"env": [{"name": "B", "value": "1"}, {"name": "A", "value": "$(B)"}]}, []),
        ({"env": [{"name": "A", "value": "$$(B) $$$(C)"}]}, ["C"]),
        ({"args": ["--host=$(IP)", "$(KUBERNETES_SERVICE_HOST)", "$(LWS_GROUP_SIZE)"]}, ["IP"]),
        ({"command": ["bash", "-c"], "args": ["echo $(nproc)"]}, []),
        ({"envFrom": [{"configMapRef": {"name": "x"}}], "args": ["$(ANY)"]}, []),
    ],
)
def test_variable_that_stays_literal_is_noted(engine: dict[str, Any], missing: list[str]) -> None:
    notes = [message for is_problem, message in said(pod(engine)) if not is_problem]
    assert [message.partition(")")[0] for message in notes] == [f"$({name}" for name in missing]


@pytest.mark.parametrize(
    ("engine", "spec", "part"),
    [
        ({}, {}, ""),
        ({}, {"hostNetwork": True}, "hostNetwork"),
        ({}, {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "the volume v is a hostPath"),
        ({}, {"volumes": [{"name": "v", "nfs": {"server": "s", "path": "/"}}]}, "the volume v is a nfs"),
        ({}, {"initContainers": [{"name": "i"}]}, "container i: allowPrivilegeEscalation is not false"),
        ({"securityContext": {"privileged": True}}, {}, "container engine: privileged"),
        ({"securityContext": {**RESTRICTED, "runAsNonRoot": False}}, {}, "runAsNonRoot is not true"),
        ({"ports": [{"containerPort": 1, "hostPort": 7}]}, {}, "hostPort 7"),
    ],
)
def test_what_restricted_pod_security_refuses_is_noted(engine: dict[str, Any], spec: dict[str, Any], part: str) -> None:
    notes = [message for _, message in said(pod(engine, **spec)) if "restricted" in message]
    assert [part in message for message in notes] == ([True] if part else [])


def test_spread_over_other_pods_is_noted() -> None:
    constraint = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "other"}}}
    assert "the spread over zone counts no pod" in said(pod(topologySpreadConstraints=[constraint]))[0][1]
    mine = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "mine"}}}
    assert said(pod(topologySpreadConstraints=[mine])) == []


@pytest.mark.parametrize(
    ("operator", "values", "expected"),
    [
        ("In", ["gpu"], True),
        ("In", ["cpu"], False),
        ("NotIn", ["gpu"], False),
        ("NotIn", ["cpu"], True),
        ("Exists", None, True),
        ("DoesNotExist", None, False),
    ],
)
def test_expressions_select_as_in_kubernetes(operator: str, values: list[str] | None, expected: bool) -> None:
    expression = {"key": "tier", "operator": operator, "values": values}
    assert selects({"matchExpressions": [expression]}, {"tier": "gpu"}) is expected
    assert selects({}, {"tier": "gpu"})
