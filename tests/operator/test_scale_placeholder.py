"""The number in `spec.replicas` that lets autoscalers begin: whose it is, and when it goes."""

from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from fairlead.fleet.labels import POOL_LABEL, SURGE_ANNOTATION
from fairlead_operator.scale_placeholder import (
    PLACEHOLDER_FIELD_MANAGER,
    PlaceholderWrite,
    ReplicasField,
    kept_field,
    placeholder_number,
    plan_placeholder,
    replicas_field,
    trim_replicas,
)
from fairlead_testing.kube.operator_harness import KEY, OperatorHarness, model_manifest

OURS = PLACEHOLDER_FIELD_MANAGER
CPU = {"name": "main", "acceleratorClassName": "cpu"}


class Field:
    """`spec.replicas` with its owners, as an API server keeps them.

    The API server drops the owner of a 0 that is written through `/scale`.
    """

    def __init__(self) -> None:
        self.value: int | None = None
        self.owners: set[str] = set()

    def apply(self, manager: str, number: int | None) -> None:
        """Server-side apply with force; None leaves the field out."""
        if number is None:
            self.owners.discard(manager)
            if not self.owners:
                self.value = None
            return
        self.owners = {manager} if number != self.value else self.owners | {manager}
        self.value = number

    def scale(self, manager: str, number: int) -> None:
        """An update of `/scale`. The number that is there changes no owner."""
        if number != self.value:
            self.value, self.owners = number, {manager} if number else set()

    def current(self) -> ReplicasField:
        others = self.owners - {OURS}
        return ReplicasField(self.value, OURS in self.owners, bool(others))


def step(field: Field, wanted: int | None) -> PlaceholderWrite:
    """One pass of the operator."""
    write = plan_placeholder(field.current(), wanted)
    if write is PlaceholderWrite.SET:
        field.apply(OURS, wanted)
    elif write is PlaceholderWrite.RELEASE:
        field.apply(OURS, None)
    return write


@pytest.mark.parametrize("seed", range(300))
def test_any_sequence_of_writers_keeps_the_number_of_the_last_one(seed: int) -> None:
    """After each write of another, the field holds that number whatever the operator does."""
    random, field, wanted, theirs = Random(seed), Field(), 1, None
    for _ in range(30):
        match random.randrange(6):
            case 0:
                theirs = random.randrange(4)
                before = field.value
                field.scale("kube-controller-manager", theirs)
                theirs = theirs if before != theirs or field.current().is_foreign else None
            case 1:
                theirs = random.randrange(4)
                field.apply("argocd", theirs)
            case 2:
                field.apply("argocd", None)
                theirs = field.value if field.value is not None and OURS not in field.owners else None
            case 3 | 4:
                wanted = random.choice((1, 2, 3))
            case _:
                wanted = None if wanted is not None else 1  # `mode: Auto`, and back
        step(field, wanted)
        assert step(field, wanted) is PlaceholderWrite.NONE  # one write is enough
        if theirs is not None:
            assert (field.value, OURS in field.owners) == (theirs, False)
        elif not field.current().is_foreign and OURS in field.owners:
            assert field.value == wanted
        assert field.value is not None or wanted is None  # /scale can be read


@pytest.mark.parametrize(
    ("field", "wanted", "write"),
    [
        (ReplicasField(), 2, PlaceholderWrite.SET),
        (ReplicasField(), None, PlaceholderWrite.NONE),
        (ReplicasField(2, is_own=True), 2, PlaceholderWrite.NONE),
        (ReplicasField(2, is_own=True), 3, PlaceholderWrite.SET),
        (ReplicasField(2, is_own=True), None, PlaceholderWrite.RELEASE),
        (ReplicasField(2, is_own=True, is_foreign=True), 3, PlaceholderWrite.RELEASE),
        (ReplicasField(2, is_foreign=True), 3, PlaceholderWrite.NONE),
        (ReplicasField(0), 3, PlaceholderWrite.NONE),  # put to sleep through /scale, which drops the owner
        (ReplicasField(None, is_foreign=True), 3, PlaceholderWrite.NONE),
    ],
)
def test_writes(field: ReplicasField, wanted: int | None, write: PlaceholderWrite) -> None:
    assert plan_placeholder(field, wanted) is write


def workload(replicas: int, pool: str = "main", **annotations: str) -> dict[str, Any]:
    metadata = {"name": pool, "labels": {POOL_LABEL: pool}, "annotations": annotations}
    return {"kind": "Deployment", "metadata": metadata, "spec": {"replicas": replicas}}


@pytest.mark.parametrize(
    ("spec", "children", "number"),
    [
        ({"pools": [{}]}, [], 1),
        ({"pools": [{"minReplicas": 3}]}, [], 3),
        ({"pools": [{"minReplicas": 0}]}, [], 0),
        ({"pools": [{"minReplicas": 3}]}, [workload(7)], 7),
        ({"pools": [{"name": "a"}]}, [workload(7), workload(2, "a")], 2),
        ({"pools": [{}]}, [workload(3, **{SURGE_ANNOTATION: "1"})], 2),
        ({"pools": [{}], "autoscaling": {"mode": "Disabled"}}, [], 1),
        ({"pools": [{}], "autoscaling": {"mode": "Auto"}}, [], None),
        ({"pools": [{}], "autoscaling": {"mode": "Advise"}}, [], None),
        ({"pools": [{"name": "a"}, {"name": "b"}]}, [], None),
        ({"pools": [{}], "engine": {"type": "External"}}, [], None),
        ({"pools": [{}], "engine": {"type": "OpenAI"}}, [], None),
    ],
)
def test_number_is_that_of_the_instances(
    spec: Mapping[str, Any], children: list[dict[str, Any]], number: int | None
) -> None:
    assert placeholder_number(spec, children) == number


def test_trimmed_model_keeps_the_owners_and_loses_the_placeholder() -> None:
    entries = [{"manager": OURS, "fieldsV1": {"f:spec": {"f:replicas": {}}}}]
    model = {"metadata": {"name": "x", "managedFields": entries}, "spec": {"replicas": 2, "pools": []}}
    trimmed = trim_replicas(model, {**model, "metadata": {"name": "x"}})
    assert (trimmed["spec"], kept_field(trimmed)) == ({"pools": []}, replicas_field(model))
    entries.append({"manager": "kubectl", "fieldsV1": {"f:spec": {"f:replicas": {}}}})
    assert trim_replicas(model, {**model, "metadata": {"name": "x"}})["spec"]["replicas"] == 2


def harness(**spec: Any) -> OperatorHarness:
    found = OperatorHarness()
    found.kube.put(model_manifest(**spec), "kubectl")
    found.run_until_idle()
    return found


def stored(found: OperatorHarness) -> tuple[int | None, tuple[bool, bool]]:
    """The field on the server, and whether the operator and others own it."""
    (model,) = found.kube.objects_of("ModelDeployment")
    field = replicas_field(model)
    return field.value, (field.is_own, field.is_foreign)


def scale(found: OperatorHarness, number: int) -> None:
    namespace, name = KEY.split("/")
    body = {"metadata": {"name": name, "namespace": namespace}, "spec": {"replicas": number}}
    found.kube.put({**model_manifest(), **body}, "kube-controller-manager/scale")
    found.run_until_idle()


def test_operator_follows_min_replicas_until_an_autoscaler_writes() -> None:
    found = harness(pools=[{"name": "main", "acceleratorClassName": "cpu", "minReplicas": 2}])
    assert stored(found) == (2, (True, False))
    found.edit(pools=[{"name": "main", "acceleratorClassName": "cpu", "minReplicas": 1}])
    found.run_until_idle()
    assert stored(found) == (1, (True, False))
    assert found.workload()["spec"]["replicas"] == 1
    scale(found, 4)
    assert stored(found) == (4, (False, True))
    assert found.workload()["spec"]["replicas"] == 4
    found.edit(pools=[{"name": "main", "acceleratorClassName": "cpu", "minReplicas": 2}])
    found.run_until_idle()
    assert stored(found) == (4, (False, True))


def test_model_that_may_sleep_is_not_woken() -> None:
    found = harness(pools=[{"name": "main", "acceleratorClassName": "cpu", "minReplicas": 0}])
    assert stored(found) == (0, (True, False))
    assert found.workload()["spec"]["replicas"] == 0


def test_number_of_the_autoscaler_survives_its_end() -> None:
    """`mode: Disabled` keeps what was written last; the placeholder is no person's number."""
    pool = {"name": "main", "acceleratorClassName": "cpu", "minReplicas": 1, "maxReplicas": 9}
    found = harness(pools=[pool], autoscaling={"mode": "Auto"})
    assert stored(found) == (None, (False, False))
    deployment = found.workload()
    found.kube.put(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": deployment["metadata"]["name"], "namespace": deployment["metadata"]["namespace"]},
            "spec": {"replicas": 7},
        },
        "fairlead-autoscaler",
    )
    found.edit(pools=[pool], autoscaling={"mode": "Disabled"})
    found.run_until_idle()
    assert found.workload()["spec"]["replicas"] == 7
    assert stored(found) == (7, (True, False))
    found.edit(pools=[pool], autoscaling={"mode": "Auto"})
    found.run_until_idle()
    assert stored(found) == (None, (False, False))
    assert found.workload()["spec"]["replicas"] == 7


def test_second_pool_takes_the_placeholder_away() -> None:
    found = harness(pools=[CPU])
    assert stored(found)[0] == 1
    found.edit(pools=[CPU, {**CPU, "name": "more"}])
    found.run_until_idle()
    assert stored(found) == (None, (False, False))
    assert len(found.names()) == 2
