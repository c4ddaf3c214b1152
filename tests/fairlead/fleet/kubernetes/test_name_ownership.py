"""Ownership of client names in a cluster."""

from fairlead.fleet.client_names import NameHistory
from fairlead.kube.resources import Manifest
from fairlead_gateway.openai.model_names import public_model_names, resolve_model
from fairlead_testing.kube.operator_harness import build, model, named


def test_clients_reach_a_model_by_each_of_its_served_names() -> None:
    fleet = build([named("tiny", "Qwen/Qwen3-8B", "qwen")]).fleet
    for name in ("tiny", "x/tiny", "Qwen/Qwen3-8B", "qwen"):
        assert (fleet.resolve_model(name), resolve_model(name, fleet).key) == ("x/tiny", "x/tiny")
    assert list(public_model_names(fleet)) == ["tiny", "Qwen/Qwen3-8B", "qwen"]


def test_a_served_name_takes_no_other_models_name_and_never_shadows_a_namespace() -> None:
    first = named("a", "b", "org/one", "y/b", born="1")
    second = named("b", "org/one", "two", namespace="y", born="2")
    fleet = build([first, second]).fleet
    keys = {name: fleet.resolve_model(name) for name in ("a", "b", "org/one", "two", "y/b", "x/a")}
    assert keys == {"a": "x/a", "b": "y/b", "org/one": "x/a", "two": "y/b", "y/b": "y/b", "x/a": "x/a"}
    assert [fleet.models[key].served_names for key in ("x/a", "y/b")] == [("org/one",), ("two",)]


def test_a_name_that_begins_with_a_namespace_of_models_is_nobodys() -> None:
    fleet = build([named("a", "y/new"), named("b", namespace="y", born="2")]).fleet
    assert fleet.resolve_model("y/new") is None


def test_no_other_namespace_gets_the_requests_for_a_deleted_model() -> None:
    owner, other = named("a", namespace="y"), named("b", "y/a", born="2")
    before = build([owner, other])
    after = build([other], name_history=NameHistory(remembered=before.name_owners))
    assert before.fleet.resolve_model("y/a") == "y/a"
    assert after.fleet.resolve_model("y/a") is None


def test_oldest_model_has_the_bare_name() -> None:
    fleet = build([model(), model(namespace="a", created="2026-02-01T00:00:00Z")]).fleet
    assert (fleet.resolve_model("tiny"), fleet.resolve_model("a/tiny"), fleet.resolve_model("x/tiny")) == (
        "x/tiny",
        "a/tiny",
        "x/tiny",
    )
    assert list(public_model_names(fleet)) == ["a/tiny", "tiny"]
    assert [resolve_model(name, fleet).key for name in ("tiny", "a/tiny")] == ["x/tiny", "a/tiny"]
    same = build([model(), model(namespace="a")]).fleet
    assert same.resolve_model("tiny") == "a/tiny"


def in_status(manifest: Manifest, client_name: str, *served: str) -> Manifest:
    return {**manifest, "status": {"clientName": client_name, "servedNames": list(served)}}


def release_names(manifest: Manifest) -> Manifest:
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": {"fairlead.io/release-names": "true"}}}


def test_waiting_model_does_not_inherit_a_name_while_its_owner_is_deleted() -> None:
    owner, waiting = model(namespace="a"), model(namespace="b", created="2026-02-01T00:00:00Z")
    names = build([owner, waiting]).name_owners
    assert names == {"tiny": "a/tiny"}
    gone = build([waiting], name_history=NameHistory(remembered=names))
    assert gone.fleet.resolve_model("tiny") is None
    assert gone.fleet.resolve_model("b/tiny") == "b/tiny"
    back = build([waiting, model(namespace="a", created="2026-03-01T00:00:00Z")], name_history=NameHistory({}, names))
    assert back.fleet.resolve_model("tiny") == "a/tiny"
    restarted = build([in_status(waiting, "b/tiny")])
    assert restarted.fleet.resolve_model("tiny") is None  # its status records that the name is another's


def test_recorded_owner_has_the_name_before_an_older_model() -> None:
    older, recorded = named("a", born="1"), in_status(named("b", "qwen", namespace="y", born="2"), "b", "qwen")
    assert build([named("a", "qwen", born="1"), recorded]).fleet.resolve_model("qwen") == "y/b"
    assert build([named("qwen", namespace="x", born="1"), recorded]).fleet.resolve_model("qwen") == "y/b"
    assert build([older, recorded]).fleet.resolve_model("a") == "x/a"


def test_released_and_assigned_names_move_to_another_model() -> None:
    owner = in_status(model(namespace="a"), "tiny")
    waiting = in_status(model(namespace="b", created="2026-02-01T00:00:00Z"), "b/tiny")
    history = NameHistory(remembered={"tiny": "a/tiny"})
    assert build([owner, waiting], name_history=history).fleet.resolve_model("tiny") == "a/tiny"
    moved = build([release_names(owner), waiting], name_history=history)
    assert moved.fleet.resolve_model("tiny") == "b/tiny"
    later = build([in_status(waiting, "tiny")], name_history=NameHistory(remembered=moved.name_owners))
    assert later.fleet.resolve_model("tiny") == "b/tiny"
    assert build([release_names(owner)], name_history=history).fleet.resolve_model("tiny") == "a/tiny"
    assigned = NameHistory({"tiny": "b/tiny"}, {"tiny": "a/tiny"})
    assert build([owner, waiting], name_history=assigned).fleet.resolve_model("tiny") == "b/tiny"
