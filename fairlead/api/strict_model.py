"""What every API type is made of: strict models with camelCase names, and the value types that several kinds share.

Unknown fields are errors and nothing is coerced: ``"3"`` is not 3. ``examples`` of a field are YAML, and become the fix that an
error message offers. ``planned`` names fields of the design that nothing honours yet, so that the message can say so.
``rules`` hold across fields, for a file and for the API server alike.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from fairlead import units
from fairlead.engine_profile import EngineProfile, builtin_profiles
from fairlead.errors import BadInput
from fairlead.fleet.model import RoutingPreset
from fairlead.fleet.model import SloTargets as ObjectiveValues
from fairlead.names import SERVED_NAME_PATTERN

FieldPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """What must hold across the fields of one type, in both languages: ``cel`` for the API server, ``broken`` for files.

    ``at`` is the field that a finding points to. ``broken`` answers True, or a more exact path, when the rule does not hold; it
    is None for a rule about changes, which one file alone cannot break.
    """

    cel: str
    message: str
    fix: str
    at: tuple[str, ...] = ()
    violation: Callable[[Any], "bool | FieldPath"] | None = None

    def schema(self) -> dict[str, str]:
        """As the API server wants it; its message is what ``kubectl apply`` prints."""
        place = {"fieldPath": "." + ".".join(self.at)} if self.at else {}
        return {"rule": self.cel, "message": f"{self.message}: {self.fix}", **place}


class StrictModel(BaseModel):
    """The base of every type that is read from a file."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", strict=True, frozen=True, allow_inf_nan=False
    )
    planned: ClassVar[frozenset[str]] = frozenset()
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        """``pools:`` without a value counts as left out, as the API server has it."""
        if not isinstance(data, dict):
            return data
        known = field_names(cls)
        return {key: value for key, value in data.items() if value is not None or key not in known}

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for rule in self.rules:
            found = rule.violation(self) if rule.violation is not None else False
            if found is not False:
                raise field_error(rule.message, rule.fix, at=rule.at if found is True else found)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The type's schema with its rules."""
        schema = handler(core_schema)
        if cls.rules:
            handler.resolve_ref_schema(schema)["x-kubernetes-validations"] = [rule.schema() for rule in cls.rules]
        return schema


def field_names(model: type[BaseModel]) -> list[str]:
    """The names of a model's fields as they are written in a file."""
    return [info.alias or name for name, info in model.model_fields.items()]


def field_error(message: str, fix: str, at: FieldPath = ()) -> PydanticCustomError:
    """The error that a validator raises; ``fix`` says how to mend the value, ``at`` where below the validator it is."""
    return PydanticCustomError("fairlead", "{message}", {"message": message, "fix": fix, "at": at})


def _require_unit(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise field_error(f"{value} has no unit", f"write {value:g}ms or {value:g}s")
    return value


def _check_duration(text: str) -> str:
    try:
        units.parse_duration(text)
    except BadInput as error:
        raise field_error(error.message, error.hint or "") from error
    return text


def _check_positive_duration(text: str) -> str:
    if units.parse_duration(_check_duration(text)) <= 0:
        raise field_error("must be longer than nothing", "write a duration such as 800ms, or leave the field out")
    return text


_DURATION_FIELD = Field(json_schema_extra={"pattern": units.DURATION_PATTERN, "maxLength": 32})
Duration = Annotated[str, BeforeValidator(_require_unit), AfterValidator(_check_duration), _DURATION_FIELD]
PositiveDuration = Annotated[
    str, BeforeValidator(_require_unit), AfterValidator(_check_positive_duration), _DURATION_FIELD
]


def _check_served_name(text: str) -> str:
    if not SERVED_NAME_PATTERN.fullmatch(text):
        raise field_error(
            f'"{text:.70}" is not what an engine calls a model',
            "use 1 to 253 of letters, digits and . _ / : @ + -, such as Qwen/Qwen3-8B",
        )
    return text


ServedName = Annotated[
    str,
    AfterValidator(_check_served_name),
    Field(json_schema_extra={"pattern": f"^{SERVED_NAME_PATTERN.pattern}$", "minLength": 1, "maxLength": 253}),
]
"""What an engine calls a model."""


class Routing(StrictModel):
    """How requests find an instance."""

    preset: Annotated[
        RoutingPreset,
        Field(
            strict=False,
            description="dual-hash follows cached prefixes while the objective holds; round-robin and least-request "
            "ignore them; session keeps a conversation on one instance; the others are rules that other routers publish",
            examples=["dual-hash"],
        ),
    ] = RoutingPreset.DUAL_HASH


class Slo(StrictModel):
    """What a request should see. Attained means: time to first token and mean inter-token latency are both within."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.ttftPerKiloToken) || has(self.ttft)",
            message="ttftPerKiloToken is added to ttft, which is missing",
            fix="add `ttft: 800ms`",
            at=("ttftPerKiloToken",),
            violation=lambda one: one.ttft_per_kilo_token is not None and one.ttft is None,
        ),
    )

    target: Annotated[
        float,
        Field(gt=0, le=1, description="the share of requests that should attain the objectives", examples=["0.95"]),
    ] = 0.95
    ttft: Annotated[
        PositiveDuration | None,
        Field(description="time to first token of a short prompt; left out = no such objective", examples=["800ms"]),
    ] = None
    ttft_per_kilo_token: Annotated[
        Duration | None, Field(description="added to ttft for every 1,000 prompt tokens", examples=["120ms"])
    ] = None
    itl: Annotated[
        PositiveDuration | None,
        Field(description="mean inter-token latency; left out = no such objective", examples=["40ms"]),
    ] = None

    def to_targets(self) -> ObjectiveValues:
        """The same in seconds, as routing reads it."""
        return ObjectiveValues(
            target=self.target,
            ttft_seconds=None if self.ttft is None else units.parse_duration(self.ttft),
            ttft_per_kilo_token_seconds=units.parse_duration(self.ttft_per_kilo_token or "0s"),
            itl_seconds=None if self.itl is None else units.parse_duration(self.itl),
        )


OptionalSeconds = Annotated[float | None, Field(ge=0, le=3600)]
OptionalCount = Annotated[int | None, Field(ge=1, le=2**40)]


class Profile(StrictModel):
    """What a step of an engine costs: a preset, coefficients of your own, or a preset with some of them changed."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.preset) || has(self.prefillTokenSeconds)",
            message="a profile needs a preset or at least prefillTokenSeconds",
            fix="add `preset:` with the name of a built-in profile, such as h100-llama8b",
            violation=lambda one: one.preset is None and one.prefill_token_seconds is None,
        ),
    )

    preset: Annotated[
        str | None, Field(min_length=1, max_length=63, description="a built-in profile", examples=["h100-llama8b"])
    ] = None
    prefill_token_seconds: Annotated[
        float | None, Field(gt=0, le=3600, description="p: one computed token (prompt or decode)", examples=["3.6e-5"])
    ] = None
    attention_seconds: Annotated[
        OptionalSeconds, Field(description="q: attention of one token on one token before it")
    ] = None
    weights_seconds: Annotated[
        OptionalSeconds, Field(description="w: the least a step takes, reading the weights once")
    ] = None
    step_seconds: Annotated[OptionalSeconds, Field(description="d: fixed overhead of a step")] = None
    sequence_seconds: Annotated[OptionalSeconds, Field(description="s: one sequence in the batch")] = None
    resident_token_seconds: Annotated[
        OptionalSeconds, Field(description="c: one resident KV token read by decoding")
    ] = None
    hit_token_seconds: Annotated[OptionalSeconds, Field(description="h: one prompt token found in the cache")] = None
    kv_tokens: Annotated[OptionalCount, Field(description="tokens that the KV cache holds")] = None
    max_sequences: Annotated[OptionalCount, Field(description="sequences in one batch")] = None
    step_tokens: Annotated[OptionalCount, Field(description="token budget of one step")] = None

    @model_validator(mode="after")
    def _check_preset(self) -> Self:
        known = builtin_profiles()
        if self.preset is not None and self.preset not in known:
            message = f'no engine profile is called "{self.preset}"'
            raise field_error(message, f"use one of {', '.join(sorted(known))}, or give coefficients", at=("preset",))
        return self

    def to_engine_profile(self, name: str) -> EngineProfile:
        """The profile as a value; ``name`` is used where it is not just a preset."""
        given = self.model_dump(exclude_none=True, exclude={"preset", "name"})
        if self.preset is None:
            return EngineProfile(name=name, **given)
        base = builtin_profiles()[self.preset]
        return replace(base, name=name, **given) if given else base
