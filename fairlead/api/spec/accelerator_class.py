"""`spec` of an AcceleratorClass: scheduling, price and speed of an accelerator."""

from enum import StrEnum
from typing import Annotated, ClassVar

from fairlead import units
from fairlead.api.spec.pools import Parallelism
from fairlead.api.spec.profile import Profile
from fairlead.api.strict_model import Rule, StrictModel, api_field, api_list
from fairlead.api.value_types import Choice, Cost, Int64, Labels, ResourceName


class CountRule(StrEnum):
    """The number of devices that a pod requests."""

    PARALLELISM = "Parallelism"
    ONE = "One"


class TolerationOperator(StrEnum):
    """The comparison of a toleration with a taint's value."""

    EQUAL = "Equal"
    EXISTS = "Exists"


class TaintEffect(StrEnum):
    """The effect of a taint on pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(StrictModel):
    """A toleration, as in a pod."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.key) || self.operator == 'Exists'",
            message="a toleration without key matches every taint, and its operator is Exists",
            fix="add key, or write `operator: Exists`",
            at=("operator",),
            violation=lambda toleration: (
                toleration.key is None and toleration.operator is not TolerationOperator.EXISTS
            ),
        ),
        Rule(
            cel="!has(self.value) || self.operator == 'Equal'",
            message="the operator Exists has no value",
            fix="remove value, or write `operator: Equal`",
            at=("value",),
            violation=lambda toleration: (
                toleration.value is not None and toleration.operator is not TolerationOperator.EQUAL
            ),
        ),
        Rule(
            cel="!has(self.tolerationSeconds) || has(self.effect) && self.effect == 'NoExecute'",
            message="tolerationSeconds is for the effect NoExecute",
            fix="write `effect: NoExecute`, or remove tolerationSeconds",
            at=("tolerationSeconds",),
            violation=lambda toleration: (
                toleration.toleration_seconds is not None and toleration.effect is not TaintEffect.NO_EXECUTE
            ),
        ),
    )

    key: Annotated[
        str | None,
        api_field("key of the taint; left out = every taint", "nvidia.com/gpu", min_length=1, max_length=317),
    ] = None
    operator: Annotated[
        Choice[TolerationOperator], api_field("Equal: the values must be equal; Exists: any value", "Exists")
    ] = TolerationOperator.EQUAL
    value: Annotated[str | None, api_field("value of the taint; left out = empty", "present", max_length=63)] = None
    effect: Annotated[
        Choice[TaintEffect] | None, api_field("effect of the taint; left out = every effect", "NoSchedule")
    ] = None
    toleration_seconds: Annotated[
        Int64 | None,
        api_field("how long a pod stays after the taint appears; left out = forever", "300", ge=0, le=2**31),
    ] = None


class AcceleratorClassSpec(StrictModel):
    """Scheduling, price and speed of an accelerator."""

    resource: Annotated[
        ResourceName | None,
        api_field("extended resource of its device plugin; left out = no device is requested", "nvidia.com/gpu"),
    ] = None
    count_rule: Annotated[
        Choice[CountRule],
        api_field("Parallelism: a pod requests one device per rank; One: it requests one device", "Parallelism"),
    ] = CountRule.PARALLELISM
    rdma_resource: Annotated[
        ResourceName | None,
        api_field(
            "extended resource of the fast network; requested by pods that transfer KV or span nodes; left out = none",
            "rdma/ib",
        ),
    ] = None
    node_selector: Labels = api_field(
        "labels that a node must have", "{nvidia.com/gpu.product: NVIDIA-L4}", default_factory=dict, max_length=16
    )
    tolerations: list[Toleration] = api_list(
        "tolerations of the pods", "[{key: nvidia.com/gpu, operator: Exists}]", max_length=16
    )
    cost_per_hour: Annotated[
        Cost | None,
        api_field(
            "US dollars per device and hour; left out = no costs are shown, and the autoscaler counts 1 per instance",
            '"2.50"',
        ),
    ] = None
    profile: Annotated[
        Profile,
        api_field(
            "cost of an engine step: the estimate of routing before the first measurements, and the speed of "
            "simulated engines",
            "{preset: 910b4}",
        ),
    ]

    def replica_nano_usd_per_hour(self, parallelism: Parallelism) -> int | None:
        """Returns the price of one instance in billionths of a US dollar per hour; None without
        costPerHour.
        """
        if self.cost_per_hour is None:
            return None
        return units.parse_usd(self.cost_per_hour) * max(1, self.devices(parallelism) * parallelism.nodes)

    def devices(self, parallelism: Parallelism) -> int:
        """Returns the number of devices that one pod of an instance requests."""
        if self.resource is None:
            return 0
        return 1 if self.count_rule is CountRule.ONE else parallelism.ranks_per_pod
