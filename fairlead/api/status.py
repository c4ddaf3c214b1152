"""`status`: the observed state of an object, written by the operator and the autoscaler.

Both write with server-side apply: each owns its condition types and never removes the other's.
"""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from fairlead.api.spec.pools import PoolRole
from fairlead.api.strict_model import StrictModel
from fairlead.api.value_types import list_map_schema

_INT32: dict[str, Any] = {"format": "int32"}
_INT64: dict[str, Any] = {"format": "int64"}
_Count = Annotated[int, Field(ge=0, json_schema_extra=_INT32)]


class ConditionStatus(StrEnum):
    """The status of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(StrictModel):
    """A standard Kubernetes condition. docs/reference/conditions.md lists types and reasons."""

    type: Annotated[str, Field(min_length=1, max_length=64, description="what it is about")]
    status: Annotated[ConditionStatus, Field(strict=False, description="whether it holds")]
    reason: Annotated[str, Field(min_length=1, max_length=64, description="why, in one word of a closed list")]
    message: Annotated[str, Field(max_length=32_768, description="why, for people")] = ""
    last_transition_time: Annotated[
        str,
        Field(
            max_length=64,
            description="when status changed last",
            json_schema_extra={"format": "date-time"},
        ),
    ]
    observed_generation: Annotated[
        int | None, Field(ge=0, description="the generation that it describes", json_schema_extra=_INT64)
    ] = None


class PoolStatus(StrictModel):
    """The observed state of one pool."""

    name: Annotated[str, Field(max_length=63, description="as in spec.pools")]
    role: Annotated[PoolRole, Field(strict=False, description="as in spec.pools")]
    desired: Annotated[_Count, Field(description="desired number of instances")]
    ready: Annotated[_Count, Field(description="instances that can take requests")]
    updated: Annotated[_Count, Field(description="instances made of the present spec, ready or not")]


class CanaryPhase(StrEnum):
    """The phase of a canary."""

    STARTING = "Starting"
    OBSERVING = "Observing"
    PAUSED = "Paused"
    PROMOTED = "Promoted"
    ROLLED_BACK = "RolledBack"


class CanaryStatus(StrictModel):
    """The latest canary of a model."""

    revision: Annotated[int, Field(ge=1, description="number of its revision", json_schema_extra=_INT64)]
    hash: Annotated[str, Field(max_length=64, description="hash of its revision")]
    phase: Annotated[CanaryPhase, Field(strict=False, description="how far it is")]
    step: Annotated[_Count, Field(description="its step, from 0")]
    weight: Annotated[_Count, Field(le=100, description="percentage of the conversations that it gets")]
    since: Annotated[
        str, Field(max_length=64, description="when the step began", json_schema_extra={"format": "date-time"})
    ]
    reason: Annotated[str, Field(max_length=64, description="as in the condition CanaryHealthy")]
    message: Annotated[str, Field(max_length=1024, description="why, for people")] = ""


class ModelDeploymentStatus(StrictModel):
    """The observed state of a model."""

    observed_generation: Annotated[
        int | None,
        Field(ge=0, description="the generation of the spec that all below is about", json_schema_extra=_INT64),
    ] = None
    client_name: Annotated[
        str | None, Field(max_length=317, description="what clients call the model: its name, or namespace/name")
    ] = None
    served_names: list[Annotated[str, Field(max_length=253)]] = Field(
        default_factory=list, max_length=16, description="further names by which clients reach it"
    )
    ready: Annotated[
        str | None,
        Field(max_length=256, description="ready and desired instances: `2/2`, or `Prefill 1/1, Decode 2/3`"),
    ] = None
    replicas: Annotated[
        int | None, Field(ge=0, description="instances that exist, for `kubectl scale`", json_schema_extra=_INT32)
    ] = None
    selector: Annotated[
        str | None, Field(max_length=1024, description="finds the pods of those instances, for autoscalers")
    ] = None
    pools: list[PoolStatus] = Field(
        default_factory=list, max_length=32, description="every pool", json_schema_extra=list_map_schema("name")
    )
    canary: Annotated[CanaryStatus | None, Field(description="the latest canary; absent without `rollout.canary`")] = (
        None
    )
    conditions: list[Condition] = Field(
        default_factory=list, max_length=16, description="how it stands", json_schema_extra=list_map_schema("type")
    )


class ModelRouteStatus(StrictModel):
    """The observed state of a route."""

    observed_generation: Annotated[
        int | None,
        Field(ge=0, description="the generation of the spec that all below is about", json_schema_extra=_INT64),
    ] = None
    client_name: Annotated[
        str | None, Field(max_length=317, description="what clients call the route: its name, or namespace/name")
    ] = None
    served_names: list[Annotated[str, Field(max_length=253)]] = Field(
        default_factory=list, max_length=16, description="further names by which clients reach it"
    )
    targets: Annotated[
        str | None, Field(max_length=8192, description="the models with their weights: `chat/llama-70b 9, chat/new 1`")
    ] = None
    conditions: list[Condition] = Field(
        default_factory=list, max_length=16, description="how it stands", json_schema_extra=list_map_schema("type")
    )


class ModelAdapterStatus(StrictModel):
    """The observed state of an adapter."""

    observed_generation: Annotated[
        int | None,
        Field(ge=0, description="the generation of the spec that all below is about", json_schema_extra=_INT64),
    ] = None
    client_name: Annotated[
        str | None, Field(max_length=317, description="what clients call the adapter: its name, or namespace/name")
    ] = None
    served_names: list[Annotated[str, Field(max_length=253)]] = Field(
        default_factory=list, max_length=16, description="further names by which clients reach it"
    )
    engine_source: Annotated[
        str | None,
        Field(max_length=1280, description="what gateways give to engines to load it: a path or a repository"),
    ] = None
    conditions: list[Condition] = Field(
        default_factory=list, max_length=16, description="how it stands", json_schema_extra=list_map_schema("type")
    )
