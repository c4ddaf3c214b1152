"""``AcceleratorClass.spec``: how pods get a kind of accelerator, and what an engine on it costs."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from fairlead.api.spec.pools import Parallelism
from fairlead.api.spec.profile import Profile
from fairlead.api.strict_model import Rule, StrictModel
from fairlead.api.value_types import Cost, Labels, ResourceName


class CountRule(StrEnum):
    """How many devices a pod asks for."""

    PARALLELISM = "Parallelism"
    ONE = "One"


class TolerationOperator(StrEnum):
    """How a toleration looks at a taint's value."""

    EQUAL = "Equal"
    EXISTS = "Exists"


class TaintEffect(StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(StrictModel):
    """As in a pod: which taint of a node is no hindrance."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.key) || self.operator == 'Exists'",
            message="a toleration without key is for every taint, and its operator is Exists",
            fix="add key, or write `operator: Exists`",
            at=("operator",),
            violation=lambda one: one.key is None and one.operator is not TolerationOperator.EXISTS,
        ),
        Rule(
            cel="!has(self.value) || self.operator == 'Equal'",
            message="the operator Exists looks at no value",
            fix="remove value, or write `operator: Equal`",
            at=("value",),
            violation=lambda one: one.value is not None and one.operator is not TolerationOperator.EQUAL,
        ),
        Rule(
            cel="!has(self.tolerationSeconds) || has(self.effect) && self.effect == 'NoExecute'",
            message="tolerationSeconds is for the effect NoExecute",
            fix="write `effect: NoExecute`, or remove tolerationSeconds",
            at=("tolerationSeconds",),
            violation=lambda one: one.toleration_seconds is not None and one.effect is not TaintEffect.NO_EXECUTE,
        ),
    )

    key: Annotated[
        str | None, Field(min_length=1, max_length=317, description="of the taint", examples=["nvidia.com/gpu"])
    ] = None
    operator: Annotated[
        TolerationOperator,
        Field(strict=False, description="Exists: whatever the taint's value", examples=["Exists"]),
    ] = TolerationOperator.EQUAL
    value: Annotated[str | None, Field(max_length=63, description="of the taint", examples=["present"])] = None
    effect: Annotated[
        TaintEffect | None,
        Field(strict=False, description="of the taint; left out = every effect", examples=["NoSchedule"]),
    ] = None
    toleration_seconds: Annotated[
        int | None,
        Field(
            ge=0,
            le=2**31,
            description="how long a pod stays once the taint is there; left out = for good",
            examples=["300"],
            json_schema_extra={"format": "int64"},
        ),
    ] = None


class AcceleratorClassSpec(StrictModel):
    """How pods get this accelerator, and what an instance on it costs in time and money."""

    resource: Annotated[
        ResourceName | None,
        Field(
            description="the extended resource that its device plugin offers; left out = no device is asked for",
            examples=["nvidia.com/gpu"],
        ),
    ] = None
    count_rule: Annotated[
        CountRule,
        Field(
            strict=False,
            description="Parallelism: a pod asks for one device for each of its ranks; One: for one, whatever the parallelism",
            examples=["Parallelism"],
        ),
    ] = CountRule.PARALLELISM
    rdma_resource: Annotated[
        ResourceName | None,
        Field(
            description="the extended resource of the fast network; pods that hand KV over or span nodes ask for one",
            examples=["rdma/ib"],
        ),
    ] = None
    node_selector: Labels = Field(
        default_factory=dict,
        max_length=16,
        description="labels that a node must have",
        examples=["{nvidia.com/gpu.product: NVIDIA-L4}"],
    )
    tolerations: list[Toleration] = Field(
        default_factory=list,
        max_length=16,
        description="taints that are no hindrance",
        examples=["[{key: nvidia.com/gpu, operator: Exists}]"],
    )
    cost_per_hour: Annotated[
        Cost | None, Field(description="US dollars for one device and hour", examples=['"2.50"'])
    ] = None
    profile: Annotated[
        Profile,
        Field(
            description="what routing expects of an engine here before it has measured one, and what a simulated "
            "engine takes",
            examples=["{preset: 910b4}"],
        ),
    ]

    def devices(self, parallelism: Parallelism) -> int:
        """Devices that one pod of an instance asks for."""
        if self.resource is None:
            return 0
        return 1 if self.count_rule is CountRule.ONE else parallelism.ranks_per_pod
