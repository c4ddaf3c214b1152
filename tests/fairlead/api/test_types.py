"""Values that API types compute: replica and device counts, sources, sizes, the list of reasons."""

from typing import Any

import pytest
from pydantic import ValidationError

from fairlead import units
from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.conditions import ConditionOwner, ConditionType, Reason, condition_types, reasons
from fairlead.api.spec.accelerator_class import AcceleratorClassSpec, CountRule
from fairlead.api.spec.model_source import ModelSource
from fairlead.api.spec.pools import Parallelism, PodTemplate
from fairlead.api.spec.profile import Profile
from fairlead.api.spec.rollout import Rollout
from fairlead.api.v1alpha1 import ModelDeploymentSpec
from fairlead.errors import BadInput


def spec(**given: Any) -> ModelDeploymentSpec:
    return ModelDeploymentSpec.model_validate({"model": {"uri": "hf://a/b"}, **given})


@pytest.mark.parametrize(
    ("replicas", "pool", "wanted"),
    [
        (None, {}, 1),
        (None, {"minReplicas": 3, "maxReplicas": 5}, 3),
        (4, {"minReplicas": 3, "maxReplicas": 5}, 4),
        (9, {"minReplicas": 3, "maxReplicas": 5}, 5),
        (0, {"minReplicas": 3, "maxReplicas": 5}, 3),
        (9, {}, 9),
        (0, {"minReplicas": 0}, 0),
    ],
)
def test_replicas_stay_within_pool_bounds(replicas: int | None, pool: dict[str, int], wanted: int) -> None:
    deployment_spec = spec(replicas=replicas, pools=[{"acceleratorClassName": "cpu", **pool}])
    assert deployment_spec.desired_instances(deployment_spec.pools[0]) == wanted


def test_template_that_is_too_large_or_too_deep_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(10_000):
        deep = {"a": deep}
    for template in ({"a": [1] * 5_000}, deep, {"a": [[1] * 100] * 100}):
        with pytest.raises(ValidationError, match=r"more than 4096 values .*, or more than 50 levels"):
            PodTemplate.model_validate({"spec": template})
    usual = {"containers": [{"name": "engine", "env": [{"name": str(number), "value": "1"} for number in range(500)]}]}
    assert PodTemplate.model_validate({"spec": usual}).spec == usual


def test_external_pool_has_no_desired_instances() -> None:
    deployment_spec = spec(engine={"type": "External"}, pools=[{"selector": {"matchLabels": {"app": "a"}}}])
    assert deployment_spec.desired_instances(deployment_spec.pools[0]) == 0


@pytest.mark.parametrize(
    ("surge", "instances", "wanted"), [(1, 10, 1), (3, 2, 3), ("25%", 10, 3), ("25%", 0, 1), ("100%", 7, 7)]
)
def test_surge_is_a_number_or_a_rounded_up_share(surge: int | str, instances: int, wanted: int) -> None:
    assert Rollout(max_surge=surge).surge_for(instances) == wanted


def test_default_drain_is_five_minutes() -> None:
    assert Rollout().drain_seconds == 300
    assert Rollout(drain_timeout="1h30m").drain_seconds == 5400


@pytest.mark.parametrize(
    ("uri", "scheme", "place", "downloaded"),
    [
        ("hf://Qwen/Qwen3-8B", "hf", "Qwen/Qwen3-8B", True),
        ("s3://bucket/a/b", "s3", "bucket/a/b", True),
        ("pvc:models/qwen", "pvc", "models/qwen", False),
        ("pvc://models/qwen", "pvc", "models/qwen", False),
        ("file:///models/qwen", "file", "/models/qwen", False),
    ],
)
def test_uri_has_a_scheme_and_a_location(uri: str, scheme: str, place: str, downloaded: bool) -> None:
    source = ModelSource(uri=uri)
    assert (source.scheme, source.location, source.is_downloaded) == (scheme, place, downloaded)


def test_pod_requests_one_device_per_rank() -> None:
    wide = Parallelism(tensor=4, pipeline=2, data=2, nodes=2)
    assert (wide.ranks, wide.ranks_per_pod) == (16, 8)
    of = AcceleratorClassSpec(resource="nvidia.com/gpu", profile=Profile(preset="910b4"))
    assert (of.devices(wide), of.devices(Parallelism())) == (8, 1)
    assert of.model_copy(update={"count_rule": CountRule.ONE}).devices(wide) == 1
    assert of.model_copy(update={"resource": None}).devices(wide) == 0


def test_builtin_accelerators_request_devices_and_tolerate_nodes() -> None:
    known = builtin_accelerators()
    assert known["cpu"].spec.resource is None
    assert known["cpu"].spec.tolerations == []
    (toleration,) = known["nvidia-l4"].spec.tolerations
    assert (toleration.key, toleration.operator.value) == ("nvidia.com/gpu", "Exists")


@pytest.mark.parametrize(("text", "wanted"), [("512Mi", 512 * 2**20), ("1.5Gi", 3 * 2**29), ("2Ti", 2**41)])
def test_sizes_are_powers_of_two(text: str, wanted: int) -> None:
    assert units.parse_size(text) == wanted


@pytest.mark.parametrize("text", ["", "64", "64G", "0Gi", "64 Gi", "-1Gi", "64Gi\n", "1e3Gi"])
def test_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is not a size"):
        units.parse_size(text)


def test_every_reason_is_documented_once() -> None:
    listed = [reason.reason for reason in reasons()]
    assert sorted(listed) == sorted(Reason)
    assert all(reason.when.endswith(".") and reason.advice.endswith(".") for reason in reasons())


def test_every_condition_type_is_documented_once_with_reasons() -> None:
    types = condition_types()
    assert [condition.type for condition in types] == list(ConditionType)
    assert {condition.type for condition in types if condition.owner is ConditionOwner.AUTOSCALER} == {
        ConditionType.SLO_MET,
        ConditionType.AUTOSCALING,
    }
    assert {reason.type for reason in reasons()} == set(ConditionType)
