"""`spec.profile` of an AcceleratorClass: the cost of an engine step."""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    Field,
    model_validator,
)

from fairlead import units
from fairlead.api.strict_model import Rule, StrictModel, api_field, field_error
from fairlead.api.value_types import PositiveQuantity, Quantity
from fairlead.engine_profile import EngineProfile, builtin_profiles

OptionalCount = Annotated[int | None, Field(ge=1, le=2**40)]


def _coefficient(description: str, example: str) -> Any:
    return api_field(f"{description}; left out = the preset's, or 0", example)


class Profile(StrictModel):
    """The cost of an engine step: a preset, coefficients, or a preset with changed coefficients.

    Seconds are quantities: ``36u`` is 36 microseconds.
    """

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.preset) || has(self.prefillTokenSeconds)",
            message="a profile needs a preset or at least prefillTokenSeconds",
            fix="add `preset:` with the name of a built-in profile, such as h100-llama8b",
            violation=lambda profile: profile.preset is None and profile.prefill_token_seconds is None,
        ),
    )

    preset: Annotated[
        str | None, api_field("a built-in profile; left out = none", "h100-llama8b", min_length=1, max_length=63)
    ] = None
    prefill_token_seconds: Annotated[
        PositiveQuantity | None, api_field("p: one computed token, prompt or decode; left out = the preset's", "36u")
    ] = None
    attention_seconds: Annotated[
        Quantity | None, _coefficient("q: attention of one token to one earlier token", "1.5m")
    ] = None
    weights_seconds: Annotated[
        Quantity | None, _coefficient("w: minimum of a step: reading the weights once", "1.5m")
    ] = None
    step_seconds: Annotated[Quantity | None, _coefficient("d: fixed overhead of a step", "1.5m")] = None
    sequence_seconds: Annotated[Quantity | None, _coefficient("s: one sequence in the batch", "1.5m")] = None
    resident_token_seconds: Annotated[
        Quantity | None, _coefficient("c: one resident KV token read by decoding", "1.5m")
    ] = None
    hit_token_seconds: Annotated[Quantity | None, _coefficient("h: one prompt token found in the cache", "1.5m")] = None
    cpu_token_seconds: Annotated[
        Quantity | None, _coefficient("loading one cached token from the engine's CPU memory", "6u")
    ] = None
    disk_token_seconds: Annotated[Quantity | None, _coefficient("loading one from the engine's disk", "40u")] = None
    store_token_seconds: Annotated[
        Quantity | None, _coefficient("loading one from a store that all engines reach", "40u")
    ] = None
    kv_tokens: Annotated[
        OptionalCount, api_field("tokens that the KV cache holds; left out = the preset's, or 430,000")
    ] = None
    max_sequences: Annotated[OptionalCount, api_field("sequences in one batch; left out = the preset's, or 256")] = None
    step_tokens: Annotated[OptionalCount, api_field("token budget of one step; left out = the preset's, or 8,192")] = (
        None
    )

    @model_validator(mode="after")
    def _check_preset(self) -> Self:
        presets = builtin_profiles()
        if self.preset is not None and self.preset not in presets:
            message = f'no engine profile is called "{self.preset}"'
            raise field_error(message, f"use one of {', '.join(sorted(presets))}, or give coefficients", at=("preset",))
        return self

    def to_engine_profile(self, name: str) -> EngineProfile:
        """Returns the engine profile that these fields describe.

        name: the name of the profile, unless it is an unchanged preset.
        """
        coefficients: dict[str, Any] = {
            field: units.parse_quantity(value) if field.endswith("_seconds") else value
            for field, value in self.model_dump(exclude_none=True, exclude={"preset", "name"}).items()
        }
        if self.preset is None:
            return EngineProfile(name=name, **coefficients)
        base = builtin_profiles()[self.preset]
        return replace(base, name=name, **coefficients) if coefficients else base
