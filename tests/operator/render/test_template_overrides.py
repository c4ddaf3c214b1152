"""A template over a template, the strategic way."""

import copy
from typing import Any

import pytest

from fairlead.errors import BadInput
from fairlead_operator.render.template_overrides import merge_template

BASE: dict[str, Any] = {
    "containers": [
        {
            "name": "engine",
            "image": "a",
            "args": ["--x"],
            "env": [
                {"name": "HOME", "value": "/h"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            ],
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            "ports": [{"name": "http", "containerPort": 8000}],
            "resources": {"limits": {"nvidia.com/gpu": "1"}, "requests": {"cpu": "3"}},
            "startupProbe": {"httpGet": {"path": "/health", "port": 8000}, "failureThreshold": 360},
            "lifecycle": {"preStop": {"exec": {"command": ["x"]}}},
        }
    ],
    "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "cache", "emptyDir": {"sizeLimit": "1Gi"}}],
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "securityContext": {"runAsUser": 1, "runAsNonRoot": True},
    "nodeSelector": {"a": "1"},
}


def engine(**fields: Any) -> dict[str, Any]:
    """A patch of the engine's container."""
    return {"containers": [{"name": "engine", **fields}]}


def merged_engine(**fields: Any) -> dict[str, Any]:
    (container,) = merge_template(BASE, engine(**fields))["containers"]
    return dict(container)


def test_empty_override_keeps_the_template() -> None:
    assert merge_template(BASE, {}) == BASE


def test_inputs_are_not_modified() -> None:
    patch = engine(env=[{"name": "A", "value": "1"}])
    before = copy.deepcopy((BASE, patch))
    merge_template(BASE, patch)
    assert (BASE, patch) == before


def test_scalars_are_replaced_and_null_removes() -> None:
    assert merged_engine(image="b")["image"] == "b"
    assert merge_template(BASE, {"securityContext": {"runAsUser": None}})["securityContext"] == {"runAsNonRoot": True}
    assert merge_template(BASE, {"nodeSelector": {"b": "2"}})["nodeSelector"] == {"a": "1", "b": "2"}
    assert merge_template(BASE, {"priorityClassName": "high"})["priorityClassName"] == "high"


def test_unnamed_lists_are_replaced() -> None:
    assert merged_engine(args=["--y"])["args"] == ["--y"]


def test_containers_merge_by_name_and_new_ones_follow() -> None:
    merged = merge_template(BASE, {"containers": [{"name": "sidecar", "image": "s"}, {"name": "engine", "image": "b"}]})
    assert [(container["name"], container["image"]) for container in merged["containers"]] == [
        ("engine", "b"),
        ("sidecar", "s"),
    ]


def test_variables_merge_by_name_and_have_one_source() -> None:
    env = merged_engine(env=[{"name": "IP", "value": "::1"}, {"name": "NEW", "value": "1"}])["env"]
    assert env == [{"name": "HOME", "value": "/h"}, {"name": "IP", "value": "::1"}, {"name": "NEW", "value": "1"}]


def test_mounts_merge_by_path_and_ports_by_number() -> None:
    container = merged_engine(
        volumeMounts=[{"mountPath": "/tmp", "readOnly": True}, {"mountPath": "/x", "name": "x"}],
        ports=[{"containerPort": 8000, "name": "web"}, {"containerPort": 9, "name": "nine"}],
    )
    assert container["volumeMounts"] == [
        {"name": "tmp", "mountPath": "/tmp", "readOnly": True},
        {"mountPath": "/x", "name": "x"},
    ]
    assert [port["name"] for port in container["ports"]] == ["web", "nine"]


def test_volume_gets_another_source_or_keeps_its_own() -> None:
    claim = {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}}
    assert merge_template(BASE, {"volumes": [claim]})["volumes"][1] == claim
    larger = merge_template(BASE, {"volumes": [{"name": "cache", "emptyDir": {"medium": "Memory"}}]})["volumes"][1]
    assert larger == {"name": "cache", "emptyDir": {"sizeLimit": "1Gi", "medium": "Memory"}}


def test_tolerations_are_appended_once() -> None:
    own = {"key": "dedicated", "operator": "Exists"}
    merged = merge_template(BASE, {"tolerations": [own, BASE["tolerations"][0]]})
    assert merged["tolerations"] == [BASE["tolerations"][0], own]


def test_probe_keeps_its_timing_when_its_action_changes() -> None:
    probe = merged_engine(startupProbe={"tcpSocket": {"port": 8000}})["startupProbe"]
    assert probe == {"tcpSocket": {"port": 8000}, "failureThreshold": 360}
    slower = merged_engine(startupProbe={"failureThreshold": 720})["startupProbe"]
    assert slower == {"httpGet": {"path": "/health", "port": 8000}, "failureThreshold": 720}
    hook = merged_engine(lifecycle={"preStop": {"sleep": {"seconds": 1}}})["lifecycle"]["preStop"]
    assert hook == {"sleep": {"seconds": 1}}


def test_item_is_deleted_and_mapping_replaced() -> None:
    merged = merge_template(BASE, {"volumes": [{"name": "cache", "$patch": "delete"}]})
    assert [volume["name"] for volume in merged["volumes"]] == ["tmp"]
    merged = merge_template(BASE, {"securityContext": {"$patch": "replace", "fsGroup": 3}})
    assert merged["securityContext"] == {"fsGroup": 3}


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        ({"containers": {"name": "engine"}}, "template.containers"),
        ({"containers": [{"image": "b"}]}, "template.containers[0]"),
        ({"containers": ["engine"]}, "template.containers[0]"),
        (engine(env=[{"value": "1"}]), "template.containers[engine].env[0]"),
        (engine(resources=[]), "template.containers[engine].resources"),
        (engine(args={"a": "b"}), "template.containers[engine].args"),
        (engine(image={"a": "b"}), "template.containers[engine].image"),
        ({"securityContext": 3}, "template.securityContext"),
        ({"securityContext": {"$patch": "merge"}}, "template.securityContext"),
        ({"$retainKeys": ["a"]}, "template"),
    ],
)
def test_unmergeable_part_is_named(patch: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInput) as caught:
        merge_template(BASE, patch)
    assert caught.value.field == field
