"""Owners of fields, from managedFields as a real API server writes them."""

import time
from typing import Any

import pytest

from fairlead_operator.controller.field_ownership import (
    REPLICAS_PATH,
    missing_fields,
    overwritten_fields,
    replica_field_owner,
    without_field,
)

WANTED = {
    "spec": {
        "replicas": 2,
        "template": {"spec": {"containers": [{"name": "engine", "image": "a", "env": [{"name": "X", "value": "1"}]}]}},
    },
    "metadata": {"finalizers": ["a"]},
}


def live(*entries: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"managedFields": [{"operation": "Update", "manager": "kubectl", **entry} for entry in entries]}
    }


def container(inside: dict[str, Any]) -> dict[str, Any]:
    return {"f:spec": {"f:template": {"f:spec": {"f:containers": {'k:{"name":"engine"}': {".": {}, **inside}}}}}}


OF_REPLICAS = {"f:spec": {"f:replicas": {}}}


def test_field_of_another_owner_is_overwritten_unless_shared() -> None:
    theirs = {"fieldsV1": OF_REPLICAS, "manager": "hpa", "subresource": "scale"}
    applied = {"fieldsV1": OF_REPLICAS, "manager": "fairlead", "operation": "Apply"}
    ours = {"fieldsV1": OF_REPLICAS, "manager": "fairlead"}
    assert overwritten_fields(live(theirs), WANTED, "fairlead") == {REPLICAS_PATH}
    assert overwritten_fields(live(theirs, applied), WANTED, "fairlead") == frozenset()
    assert overwritten_fields(live(theirs, ours), WANTED, "fairlead") == frozenset()


@pytest.mark.parametrize(
    ("entries", "who"),
    [
        ([], ""),
        ([{"manager": "fairlead", "operation": "Apply", "fieldsV1": OF_REPLICAS}], ""),
        ([{"manager": "fairlead", "fieldsV1": OF_REPLICAS}], ""),
        ([{"manager": "kubectl", "subresource": "scale", "fieldsV1": OF_REPLICAS}], "kubectl"),
        (
            [
                {"manager": "fairlead", "fieldsV1": OF_REPLICAS},
                {"manager": "hpa", "subresource": "scale", "fieldsV1": OF_REPLICAS},
            ],
            "hpa",
        ),
        ([{"manager": "kcm", "subresource": "status", "fieldsV1": {"f:status": {"f:replicas": {}}}}], ""),
    ],
)
def test_replicas_belong_to_any_other_writer(entries: list[dict[str, Any]], who: str) -> None:
    assert replica_field_owner(live(*entries), "fairlead") == who


def test_absent_field_is_missing_unless_empty() -> None:
    pod = {
        "containers": [
            {"name": "engine", "image": "a", "env": [{"name": "X", "value": "1"}, {"name": "E", "value": ""}]},
            {"name": "side", "image": "b"},
        ],
        "hostNetwork": False,
        "securityContext": {},
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "args": ["a"],
    }
    assert missing_fields(pod, pod) == frozenset()
    assert missing_fields({"containers": [pod["containers"][0]], "volumes": [{"name": "tmp"}], "args": ["b"]}, pod) == {
        ("containers", "side")
    }
    without_env = {**pod, "containers": [{"name": "engine", "image": "other"}, {"name": "side", "image": "b"}]}
    assert missing_fields(without_env, pod) == {("containers", "engine", "env")}
    other_env = [{"name": "engine", "image": "a", "env": [{"name": "Y"}]}, {"name": "side", "image": "b"}]
    assert missing_fields({**pod, "containers": other_env}, pod) == {
        ("containers", "engine", "env", name) for name in ("X", "E")
    }
    assert missing_fields({**pod, "args": None}, pod) == {("args",)}


def test_unset_fields_and_controller_status_are_ignored() -> None:
    status = {"fieldsV1": {"f:spec": {"f:replicas": {}}}, "subresource": "status"}
    other = {"fieldsV1": {"f:metadata": {"f:annotations": {"f:deployment.kubernetes.io/revision": {}}}}}
    assert overwritten_fields(live(status, other), WANTED, "fairlead") == frozenset()


def test_list_elements_are_found_by_key() -> None:
    changed = container({"f:image": {}, "f:command": {}, "f:env": {'k:{"name":"X"}': {"f:value": {}}}})
    fields = {path[-1] for path in overwritten_fields(live({"fieldsV1": changed}), WANTED, "fairlead")}
    assert fields == {"image", "value"}


def test_set_values_are_found() -> None:
    fields = {"f:metadata": {"f:finalizers": {'v:"a"': {}, 'v:"b"': {}}}}
    assert {path[-1] for path in overwritten_fields(live({"fieldsV1": fields}), WANTED, "fairlead")} == {'v:"a"'}


def test_broken_key_is_ignored() -> None:
    fields = {"f:metadata": {"f:finalizers": {"v:{": {}, "k:[]": {}}}}
    assert overwritten_fields(live({"fieldsV1": fields}), WANTED, "fairlead") == frozenset()


def test_field_is_left_out_of_a_copy() -> None:
    assert without_field(WANTED, REPLICAS_PATH)["spec"].keys() == {"template"}
    assert without_field(WANTED, ("none", "here")) is WANTED
    assert WANTED["spec"]["replicas"] == 2


def test_thousands_of_list_elements_of_another_writer_are_compared_in_linear_time() -> None:
    variables = [{"name": f"V{number}", "value": "1"} for number in range(20_000)]
    wanted = {"spec": {"template": {"spec": {"containers": [{"name": "engine", "env": variables}]}}}}
    fields = {f'k:{{"name":"V{number}"}}': {".": {}, "f:name": {}, "f:value": {}} for number in range(20_000)}
    began = time.process_time()
    paths = overwritten_fields(live({"fieldsV1": container({"f:env": fields})}), wanted, "fairlead")
    assert time.process_time() - began < 30.0  # searching each list took more than 100 s
    assert len(paths) == 40_000


def test_element_is_found_by_the_keys_that_a_manifest_gives() -> None:
    ports = [{"port": 80, "name": "a"}, {"port": 80, "name": "b", "protocol": "UDP"}]
    fields = {f'k:{{"port":80,"protocol":"{name}"}}': {"f:name": {}} for name in ("TCP", "UDP", "SCTP")}
    paths = overwritten_fields(
        live({"fieldsV1": {"f:spec": {"f:ports": fields}}}), {"spec": {"ports": ports[1:]}}, "fairlead"
    )
    assert [path[2] for path in paths] == ['k:{"port":80,"protocol":"UDP"}']
    both = overwritten_fields(
        live({"fieldsV1": {"f:spec": {"f:ports": fields}}}), {"spec": {"ports": ports}}, "fairlead"
    )
    assert len(both) == 3
