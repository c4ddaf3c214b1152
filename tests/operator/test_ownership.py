"""Who owns which field, from managedFields as a real API server writes them."""

from typing import Any

from fairlead_operator.ownership import REPLICAS, taken, without

WANTED = {
    "spec": {
        "replicas": 2,
        "template": {"spec": {"containers": [{"name": "engine", "image": "a", "env": [{"name": "X", "value": "1"}]}]}},
    },
    "metadata": {"finalizers": ["a"]},
}


def live(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"managedFields": [{"operation": "Update", "manager": "kubectl", **one} for one in entries]}}


def container(inside: dict[str, Any]) -> dict[str, Any]:
    return {"f:spec": {"f:template": {"f:spec": {"f:containers": {'k:{"name":"engine"}': {".": {}, **inside}}}}}}


def test_a_scaler_takes_replicas_and_leaves_them_with_us_where_both_own_them() -> None:
    theirs = {"fieldsV1": {"f:spec": {"f:replicas": {}}}, "manager": "hpa", "subresource": "scale"}
    ours = {"fieldsV1": {"f:spec": {"f:replicas": {}}}, "manager": "fairlead", "operation": "Apply"}
    assert taken(live(theirs), WANTED, "fairlead") == {REPLICAS}
    assert taken(live(theirs, ours), WANTED, "fairlead") == frozenset()


def test_what_we_do_not_set_and_what_controllers_say_is_not_taken() -> None:
    status = {"fieldsV1": {"f:spec": {"f:replicas": {}}}, "subresource": "status"}
    other = {"fieldsV1": {"f:metadata": {"f:annotations": {"f:deployment.kubernetes.io/revision": {}}}}}
    assert taken(live(status, other), WANTED, "fairlead") == frozenset()


def test_fields_of_list_elements_are_found_by_their_key() -> None:
    changed = container({"f:image": {}, "f:command": {}, "f:env": {'k:{"name":"X"}': {"f:value": {}}}})
    found = {path[-1] for path in taken(live({"fieldsV1": changed}), WANTED, "fairlead")}
    assert found == {"image", "value"}


def test_values_of_sets_are_found() -> None:
    fields = {"f:metadata": {"f:finalizers": {'v:"a"': {}, 'v:"b"': {}}}}
    assert {path[-1] for path in taken(live({"fieldsV1": fields}), WANTED, "fairlead")} == {'v:"a"'}


def test_a_broken_key_is_nobodys() -> None:
    fields = {"f:metadata": {"f:finalizers": {"v:{": {}, "k:[]": {}}}}
    assert taken(live({"fieldsV1": fields}), WANTED, "fairlead") == frozenset()


def test_a_field_is_left_out_of_a_copy() -> None:
    assert without(WANTED, REPLICAS)["spec"].keys() == {"template"}
    assert without(WANTED, ("none", "here")) is WANTED
    assert WANTED["spec"]["replicas"] == 2
