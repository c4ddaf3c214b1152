"""What every API type is made of: strict models with camelCase names, and the value types that several kinds share.

Unknown fields are errors and nothing is coerced: ``"3"`` is not 3. ``examples`` of a field are YAML, and become the fix that an
error message offers. ``planned`` names fields of the design that nothing honours yet, so that the message can say so.
``rules`` hold across fields, for a file and for the API server alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

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
