"""`status`: the observed state of an object, written by the operator and the autoscaler.

Both write with server-side apply: each owns its condition types and never removes the other's.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from fairlead.api.spec.pools import PoolRole
from fairlead.api.strict_model import StrictModel, api_field, api_list
from fairlead.api.value_types import Choice, Int32, Int64

_Count = Annotated[Int32, Field(ge=0)]


class ConditionStatus(StrEnum):
    """The status of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(StrictModel):
    """A standard Kubernetes condition. docs/reference/conditions.md lists types and reasons."""

    type: Annotated[str, api_field("what it is about", min_length=1, max_length=64)]
    status: Annotated[Choice[ConditionStatus], api_field("whether it holds")]
    reason: Annotated[str, api_field("why, in one word of a closed list", min_length=1, max_length=64)]
    message: Annotated[str, api_field("why, for people", max_length=32_768)] = ""
    last_transition_time: Annotated[
        str, api_field("when status changed last", max_length=64, json_schema_extra={"format": "date-time"})
    ]
    observed_generation: Annotated[Int64 | None, api_field("the generation that it describes", ge=0)] = None


class PoolStatus(StrictModel):
    """The observed state of one pool."""

    name: Annotated[str, api_field("as in spec.pools", max_length=63)]
    role: Annotated[Choice[PoolRole], api_field("as in spec.pools")]
    desired: Annotated[_Count, api_field("desired number of instances")]
    ready: Annotated[_Count, api_field("instances that can take requests")]
    updated: Annotated[_Count, api_field("instances made of the present spec, ready or not")]


class CanaryPhase(StrEnum):
    """The phase of a canary."""

    STARTING = "Starting"
    OBSERVING = "Observing"
    PAUSED = "Paused"
    PROMOTED = "Promoted"
    ROLLED_BACK = "RolledBack"


class CanaryStatus(StrictModel):
    """The latest canary of a model."""

    revision: Annotated[Int64, api_field("number of its revision", ge=1)]
    hash: Annotated[str, api_field("hash of its revision", max_length=64)]
    phase: Annotated[Choice[CanaryPhase], api_field("how far it is")]
    step: Annotated[_Count, api_field("its step, from 0")]
    weight: Annotated[_Count, api_field("percentage of the conversations that it gets", le=100)]
    since: Annotated[str, api_field("when the step began", max_length=64, json_schema_extra={"format": "date-time"})]
    reason: Annotated[str, api_field("as in the condition CanaryHealthy", max_length=64)]
    message: Annotated[str, api_field("why, for people", max_length=1024)] = ""


_Conditions = Annotated[
    list[Condition],
    api_list("how it stands", max_length=16, key="type"),
]


class _NamedStatus(StrictModel):
    """The base of the status of kinds that clients call by names."""

    observed_generation: Annotated[
        Int64 | None, api_field("the generation of the spec that all below is about", ge=0)
    ] = None
    client_name: str | None = None
    served_names: list[Annotated[str, Field(max_length=253)]] = api_list(
        "further names by which clients reach it", max_length=16
    )


class ModelDeploymentStatus(_NamedStatus):
    """The observed state of a model."""

    client_name: Annotated[
        str | None, api_field("what clients call the model: its name, or namespace/name", max_length=317)
    ] = None
    ready: Annotated[
        str | None, api_field("ready and desired instances: `2/2`, or `Prefill 1/1, Decode 2/3`", max_length=256)
    ] = None
    replicas: Annotated[Int32 | None, api_field("instances that exist, for `kubectl scale`", ge=0)] = None
    selector: Annotated[
        str | None, api_field("finds the pods of those instances, for autoscalers", max_length=1024)
    ] = None
    pools: list[PoolStatus] = api_list("every pool", max_length=32, key="name")
    canary: Annotated[CanaryStatus | None, api_field("the latest canary; absent without `rollout.canary`")] = None
    conditions: _Conditions


class ModelRouteStatus(_NamedStatus):
    """The observed state of a route."""

    client_name: Annotated[
        str | None, api_field("what clients call the route: its name, or namespace/name", max_length=317)
    ] = None
    targets: Annotated[
        str | None, api_field("the models with their weights: `chat/llama-70b 9, chat/new 1`", max_length=8192)
    ] = None
    conditions: _Conditions


class ModelAdapterStatus(_NamedStatus):
    """The observed state of an adapter."""

    client_name: Annotated[
        str | None, api_field("what clients call the adapter: its name, or namespace/name", max_length=317)
    ] = None
    engine_source: Annotated[
        str | None, api_field("what gateways give to engines to load it: a path or a repository", max_length=1280)
    ] = None
    conditions: _Conditions
