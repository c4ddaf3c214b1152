"""The shelf: what is newer counts, whose it is, and who has the bare name."""

import json
from collections.abc import Iterable
from typing import Any, NoReturn

import pytest
from pydantic import ValidationError

from fairlead.api.spec.pools import PodTemplate
from fairlead.fleet.client_names import NameClaim, RefusedName, name_owners
from fairlead.kube.field_managers import CHANGED_BY_ANNOTATION
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead_operator.kube import object_cache
from fairlead_operator.kube.object_cache import ObjectCache
from fairlead_operator.kube.object_trimming import drop_own_managed_fields

LABELS = {"app.kubernetes.io/managed-by": "fairlead", "fairlead.io/model": "qwen"}


def child(version: int, uid: str = "u", labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    metadata = {"name": "s", "namespace": "chat", "uid": uid, "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {**metadata, "labels": labels or LABELS}, "spec": spec}


def model(name: str = "qwen", namespace: str = "chat", version: int = 1, born: str = "1") -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "uid": f"{namespace}/{name}", "creationTimestamp": born}
    return {"kind": "ModelDeployment", "metadata": {**metadata, "resourceVersion": str(version)}}


def take(shelf: ObjectCache, manifest: dict[str, Any], kind: WatchEventType = WatchEventType.MODIFIED) -> list[str]:
    return shelf.apply(WatchEvent(kind, manifest))


def spec(shelf: ObjectCache) -> Any:
    seen = shelf.snapshot("chat/qwen")
    assert seen is not None
    return {key: manifest["spec"] for key, manifest in seen.children.items()}


def test_watch_behind_own_writes_is_ignored() -> None:
    shelf = ObjectCache()
    take(shelf, model())
    shelf.record_write(child(9, new=True))
    take(shelf, child(8))
    assert spec(shelf) == {("Service", "s"): {"new": True}}
    take(shelf, child(7, "earlier"), WatchEventType.DELETED)
    assert spec(shelf) == {("Service", "s"): {"new": True}}
    take(shelf, child(10), WatchEventType.DELETED)
    assert spec(shelf) == {}


def test_event_of_own_write_is_not_new() -> None:
    shelf = ObjectCache()
    take(shelf, model())
    shelf.record_write(child(9))
    assert take(shelf, child(9)) == []
    assert take(shelf, child(10)) == ["chat/qwen"]
    assert take(shelf, model()) == []
    assert take(shelf, model(version=2)) == ["chat/qwen"]


def test_same_child_version_is_found_by_metadata() -> None:
    shelf = ObjectCache()
    take(shelf, model())
    shelf.record_write(child(9, a=1))
    named = {"kind": "Service", "metadata": child(9)["metadata"]}
    assert (shelf.find_same_version(named) or {})["spec"] == {"a": 1}
    assert shelf.find_same_version(child(10)) is shelf.find_same_version(child(9, uid="another")) is None
    unmarked = {"kind": "Service", "metadata": {**named["metadata"], "labels": None}}
    assert shelf.find_same_version(unmarked) is None


def test_object_missing_from_a_list_is_removed_despite_newer_state() -> None:
    shelf = ObjectCache()
    take(shelf, model())
    shelf.record_write(child(9))
    assert take(shelf, child(7), WatchEventType.DELETED) == ["chat/qwen"]
    assert spec(shelf) == {}


def test_late_response_after_deletion_restores_nothing() -> None:
    shelf = ObjectCache()
    take(shelf, model())
    take(shelf, child(8))
    take(shelf, child(10), WatchEventType.DELETED)
    shelf.record_write(child(9))
    assert spec(shelf) == {}
    take(shelf, child(11))  # it had lost our labels, and has them again
    assert spec(shelf) != {}
    assert take(shelf, model(version=5), WatchEventType.DELETED) == ["chat/qwen"]
    shelf.record_write(model(version=4))
    assert shelf.models == {}


def test_deletion_of_a_predecessor_spares_its_successor() -> None:
    shelf = ObjectCache()
    take(shelf, model())
    take(shelf, child(12, "second"))
    take(shelf, child(13, "first"), WatchEventType.DELETED)
    assert spec(shelf).keys() == {("Service", "s")}


def test_object_without_our_labels_affects_no_model() -> None:
    shelf = ObjectCache()
    assert take(shelf, child(1, labels={"fairlead.io/model": "qwen"})) == []
    assert take(shelf, child(1, labels={"app.kubernetes.io/managed-by": "fairlead"})) == []
    assert take(shelf, child(1)) == ["chat/qwen"]


def test_list_finds_deleted_and_new_objects() -> None:
    shelf = ObjectCache()
    assert shelf.replace_models([model("a"), model("b")]) == ["chat/a", "chat/b"]
    assert shelf.replace_models([model("a", version=0), model("b", version=2)]) == ["chat/b"]
    assert shelf.replace_models([model("b", version=2)]) == ["chat/a"]
    assert list(shelf.models) == ["chat/b"]


def test_models_of_one_name_affect_each_other_only_on_arrival() -> None:
    shelf = ObjectCache()
    take(shelf, model(namespace="x", born="2"))
    assert take(shelf, model(namespace="y", born="1")) == ["y/qwen", "x/qwen"]
    assert take(shelf, model(namespace="y", born="1", version=2)) == ["y/qwen"]
    seen = {key: shelf.snapshot(key) for key in ("x/qwen", "y/qwen")}
    assert [view.refused_names for view in seen.values() if view is not None] == [(RefusedName("qwen", "y/qwen"),), ()]
    assert take(shelf, model(namespace="y", version=3), WatchEventType.DELETED) == ["y/qwen", "x/qwen"]


def with_names(*names: str, **given: Any) -> dict[str, Any]:
    return {**model(**given), "spec": {"model": {"servedNames": list(names)}}}


def refused(cache: ObjectCache, key: str) -> tuple[RefusedName, ...]:
    snapshot = cache.snapshot(key)
    assert snapshot is not None
    return snapshot.refused_names


def test_served_name_belongs_to_the_oldest_model_that_claims_it() -> None:
    cache = ObjectCache()
    take(cache, with_names("org/one", namespace="x", name="a", born="1"))
    assert take(cache, with_names("org/one", "two", namespace="y", name="b", born="2")) == ["y/b", "x/a"]
    assert refused(cache, "x/a") == ()
    assert refused(cache, "y/b") == (RefusedName("org/one", "x/a"),)
    assert take(cache, with_names(namespace="x", name="a", born="1", version=2)) == ["x/a", "y/b"]
    assert refused(cache, "y/b") == ()


def test_own_name_of_a_model_goes_before_an_older_models_served_name() -> None:
    cache = ObjectCache()
    take(cache, with_names("qwen", namespace="x", name="a", born="1"))
    assert take(cache, model(namespace="y", name="qwen", born="2")) == ["y/qwen", "x/a"]
    assert refused(cache, "x/a") == (RefusedName("qwen", "y/qwen"),)
    assert refused(cache, "y/qwen") == ()


def test_new_model_does_not_take_the_served_name_of_another() -> None:
    cache = ObjectCache()
    take(cache, with_names("qwen", namespace="x", name="a", born="1"))
    assert refused(cache, "x/a") == ()
    take(cache, model(namespace="y", name="qwen", born="2"))
    assert refused(cache, "y/qwen") == (RefusedName("qwen", "x/a"),)
    take(cache, with_names("qwen", namespace="x", name="a", version=3), WatchEventType.DELETED)
    assert refused(cache, "y/qwen") == (RefusedName("qwen", "x/a", is_owner_gone=True),)


def test_served_name_that_begins_with_a_namespace_of_models_is_refused() -> None:
    cache = ObjectCache()
    take(cache, with_names("chat/other", namespace="x", name="a", born="1"))
    assert refused(cache, "x/a") == ()
    assert take(cache, model("b", namespace="chat", born="2")) == ["chat/b", "x/a"]
    assert refused(cache, "x/a") == (RefusedName("chat/other", None),)
    assert take(cache, model("c", namespace="chat", born="3")) == ["chat/c"]
    assert take(cache, model("c", namespace="chat", version=4), WatchEventType.DELETED) == ["chat/c"]
    assert take(cache, model("b", namespace="chat", version=4), WatchEventType.DELETED) == ["chat/b", "x/a"]
    assert refused(cache, "x/a") == ()


def test_deleted_owner_of_a_name_keeps_its_namespace_from_others() -> None:
    """Else another namespace gets the requests for `chat/b` once its last model is deleted."""
    cache = ObjectCache()
    take(cache, with_names("chat/b", namespace="x", name="a", born="1"))
    take(cache, model("b", namespace="chat", born="2"))
    assert cache.snapshot("chat/b") is not None  # its names are decided
    assert take(cache, model("b", namespace="chat", version=4), WatchEventType.DELETED) == ["chat/b"]
    assert refused(cache, "x/a") == (RefusedName("chat/b", None),)
    assert take(cache, model("b", namespace="chat", born="9", version=5)) == ["chat/b"]
    assert cache._namespaces == {"x": 1, "chat": 1}


def test_namespace_of_routes_and_adapters_alone_is_kept_from_others() -> None:
    for kind in ("ModelRoute", "ModelAdapter"):
        cache = ObjectCache()
        take(cache, with_names("chat/b", namespace="x", name="a", born="1"))
        take(cache, {**model("b", namespace="chat", born="2"), "kind": kind})
        assert refused(cache, "x/a") == (RefusedName("chat/b", None),), kind


def test_accelerator_affects_every_model() -> None:
    shelf = ObjectCache()
    shelf.replace_models([model("a"), model("b")])
    accelerator = {"kind": "AcceleratorClass", "metadata": {"name": "l4", "uid": "l4"}}
    assert take(shelf, accelerator) == ["chat/a", "chat/b"]


def test_managed_fields_are_kept_only_if_others_wrote() -> None:
    ours = {"manager": "fairlead", "operation": "Apply"}
    status = {"manager": "kcm", "operation": "Update", "subresource": "status"}
    theirs = {"manager": "kubectl", "operation": "Update"}
    alone, shared = child(1), child(1)
    alone["metadata"]["managedFields"] = [ours, status]
    shared["metadata"]["managedFields"] = [ours, theirs, status]
    assert "managedFields" not in drop_own_managed_fields(alone)["metadata"]
    assert drop_own_managed_fields(shared)["metadata"]["managedFields"] == [ours, theirs, status]


def test_name_that_a_thousand_models_claim_is_decided_once() -> None:
    shelf = ObjectCache()
    queued = []
    for number in range(1_000):
        claimant = {**model(f"m{number}"), "spec": {"model": {"servedNames": ["wanted"]}}}
        queued.append(take(shelf, claimant))
        seen = shelf.snapshot(f"chat/m{number}")
        assert seen is not None
        assert seen.served_names == (("wanted",) if number == 0 else ())
    assert queued == [[f"chat/m{number}"] for number in range(1_000)]
    affected = take(shelf, {**model("m0", version=2), "spec": {}})  # it drops the name
    assert len(affected) == 1_000


def test_models_with_equal_names_are_listed_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def count(claims: Iterable[NameClaim], *rest: Any) -> dict[str, str]:
        nonlocal compared
        listed = list(claims)
        compared += len(listed)
        return name_owners(listed, *rest)

    monkeypatch.setattr(object_cache, "name_owners", count)
    shelf, keys = ObjectCache(), [f"chat/m{number:03d}" for number in range(500)]
    listed = [with_names("wanted", name=key.partition("/")[2]) for key in keys]
    assert shelf.replace_models(listed) == keys, "each once"
    assert {
        key: snapshot.served_names
        for key in keys
        if (snapshot := shelf.snapshot(key)) is not None and snapshot.served_names
    } == {keys[0]: ("wanted",)}
    assert compared <= 2 * len(keys)


def test_deleted_owner_that_comes_back_without_a_name_releases_it() -> None:
    shelf = ObjectCache()
    first = {**model("first"), "spec": {"model": {"servedNames": ["wanted"]}}}
    take(shelf, first)
    take(shelf, {**model("second"), "spec": {"model": {"servedNames": ["wanted"]}}})
    assert shelf.snapshot("chat/first") is not None
    take(shelf, first, WatchEventType.DELETED)
    kept = shelf.snapshot("chat/second")
    assert kept is not None
    assert kept.refused_names == (RefusedName("wanted", "chat/first", True),)
    again = model("first", version=9)
    again["metadata"]["uid"] = "another"
    assert take(shelf, again) == ["chat/first", "chat/second"]
    free = shelf.snapshot("chat/second")
    assert free is not None
    assert free.served_names == ("wanted",)


class _UnreadableNames(dict[str, Any]):
    """Names that can be looked up, and not be looked through."""

    def __iter__(self) -> NoReturn:
        raise AssertionError("all names of all models were read")

    items = keys = values = __iter__  # type: ignore[assignment]


def test_models_that_come_and_go_cost_the_same_however_many_names_others_have() -> None:
    cache = ObjectCache()
    owner = with_names("chat/other", "wanted", namespace="x", name="a", born="1")
    take(cache, owner)
    assert refused(cache, "x/a") == ()
    cache._keys_by_name = _UnreadableNames(cache._keys_by_name)
    cache._name_owners = _UnreadableNames(cache._name_owners)
    assert take(cache, model("b", namespace="chat", born="2")) == ["chat/b", "x/a"]
    assert take(cache, model("b", namespace="chat", version=4), WatchEventType.DELETED) == ["chat/b", "x/a"]
    take(cache, owner, WatchEventType.DELETED)
    again = with_names(namespace="x", name="a", version=9)
    again["metadata"]["uid"] = "another"
    take(cache, again)
    assert "wanted" not in cache._name_owners


def test_metadata_of_models_that_is_not_used_takes_no_memory() -> None:
    shelf = ObjectCache()
    given = model()
    used = {"fairlead.io/run-revision": "1/2", "fairlead.io/release-names": "true"}
    given["metadata"] |= {"labels": {"team": "a"}, "managedFields": [{}], "annotations": {**used, "x": "y" * 1_000}}
    take(shelf, given)
    kept = {**used, CHANGED_BY_ANNOTATION: "an unknown writer"}
    assert shelf.models["chat/qwen"]["metadata"] == {**model()["metadata"], "annotations": kept}


@pytest.mark.parametrize("size", [1, 100_000])
def test_template_of_any_size_takes_little_memory(size: int) -> None:
    shelf = ObjectCache()
    pools = [{"name": "main", "template": {"spec": {"x": [{}] * size}}}, {"name": "other"}]
    take(shelf, {**model(), "spec": {"pools": pools}})
    seen = shelf.models["chat/qwen"]["spec"]["pools"]
    assert seen[1] == pools[1]
    assert (seen == pools) == (size == 1)
    if size > 1:
        assert len(json.dumps(seen)) < 50_000
        with pytest.raises(ValidationError, match="more than 4096 values"):
            PodTemplate.model_validate(seen[0]["template"])
