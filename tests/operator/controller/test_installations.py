"""Two installations whose operators watch the same namespace."""

import pytest

from fairlead.fleet.labels import INSTALLATION_LABEL
from fairlead.kube.resources import labels_of, metadata_of, name_of
from fairlead_operator.render.context import InstallationDefaults
from fairlead_testing.kube.in_memory import InMemoryKube
from fairlead_testing.kube.operator_harness import OperatorHarness, model_manifest


def installation(kube: InMemoryKube, id: str) -> OperatorHarness:
    return OperatorHarness(kube, installation=InstallationDefaults({}, id=id))


def ids(harness: OperatorHarness) -> set[str]:
    kinds = ("Deployment", "Service", "ControllerRevision")
    return {labels_of(child).get(INSTALLATION_LABEL, "") for kind in kinds for child in harness.kube.objects_of(kind)}


@pytest.mark.parametrize(("first", "second"), [("a.fairlead", "b.fairlead"), ("b.fairlead", "a.fairlead"), ("a", "")])
def test_an_operator_changes_nothing_of_another_installation(first: str, second: str) -> None:
    kube = InMemoryKube()
    owner, other = installation(kube, first), installation(kube, second)
    kube.put(model_manifest())
    owner.run_until_idle()
    status = owner.status()
    kube.writes.clear()
    other.run_until_idle()
    other.reconcile()
    assert kube.writes == []
    assert ids(owner) == {first}
    assert owner.status() == status
    (event,) = other.events
    assert event.reason == "OtherInstallation"
    assert first in event.note
    assert other.reconciler.other_installations == {"chat/qwen": first}


def test_operators_that_create_at_once_leave_the_model_to_one() -> None:
    kube = InMemoryKube()
    first, second = installation(kube, "a"), installation(kube, "b")
    kube.put(model_manifest())
    second.drops_events = True  # its watches are late: it believes that no child exists
    first.run_until_idle()
    kube.writes.clear()
    assert second.reconcile() == 0.0  # the first one has written the number of the model since
    second.reconcile()
    assert kube.writes == []
    assert ids(first) == {"a"}
    assert [event.reason for event in second.events] == ["OtherInstallation"]


def test_children_of_two_installations_fall_to_the_same_one() -> None:
    kube = InMemoryKube()
    first, second = installation(kube, "a"), installation(kube, "b")
    kube.put(model_manifest())
    first.run_until_idle()
    service = first.workload("Service")
    metadata = {"name": name_of(service), "namespace": "chat", "labels": {INSTALLATION_LABEL: "b"}}
    kube.put({"apiVersion": "v1", "kind": "Service", "metadata": metadata}, "someone")
    second.run_until_idle()
    first.run_until_idle()
    assert ids(first) == {"a"}
    assert "OtherInstallation" in [event.reason for event in second.events]


def test_children_of_an_earlier_release_are_adopted_without_a_rollout() -> None:
    kube = InMemoryKube()
    earlier = installation(kube, "")
    kube.put(model_manifest())
    earlier.run_until_idle()
    generation = metadata_of(earlier.workload())["generation"]
    upgraded = installation(kube, "a")
    upgraded.run_until_idle()
    assert ids(upgraded) == {"a"}
    assert metadata_of(upgraded.workload())["generation"] == generation
    assert upgraded.events == []


def test_a_model_is_taken_over_once_its_children_carry_no_id() -> None:
    kube = InMemoryKube()
    owner, other = installation(kube, "a"), installation(kube, "b")
    kube.put(model_manifest())
    owner.run_until_idle()
    other.run_until_idle()
    for kind in ("Deployment", "Service", "ControllerRevision"):
        for child in kube.objects_of(kind):
            metadata = {"name": name_of(child), "namespace": "chat", "labels": {INSTALLATION_LABEL: ""}}
            kube.put({"apiVersion": child["apiVersion"], "kind": kind, "metadata": metadata}, "kubectl-label")
    other.run_until_idle()
    assert ids(other) == {"b"}
    assert other.reconciler.other_installations == {}
