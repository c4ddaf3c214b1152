"""The base class of API types, and rules that hold across fields.

Unknown fields are errors and values are not coerced: `"3"` is not 3. `examples` of a field are
YAML; error messages offer them as the fix. `planned` names fields of the design that this release
does not honour yet. `misplaced` maps fields that people write into the wrong object to their right
path. `rules` apply to files and on the API server alike. `unique` maps lists to the attribute by
which their items differ; an empty one stands for the items themselves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

FieldPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A constraint across the fields of one type, for the API server (`cel`) and for files
    (`violation`).

    at: the field that an error points to.
    violation: returns True, or a more exact path, if the rule is violated. None for a rule about
        changes, which a single file cannot violate.
    compares_old: `cel` reads `oldSelf`, an optional, which is empty for a new object.
    """

    cel: str
    message: str
    fix: str
    at: tuple[str, ...] = ()
    violation: Callable[[Any], "bool | FieldPath"] | None = None
    compares_old: bool = False

    def schema(self) -> dict[str, str | bool]:
        """Returns the rule for a CRD schema. `kubectl apply` prints its message."""
        more: dict[str, str | bool] = {"fieldPath": "." + ".".join(self.at)} if self.at else {}
        more |= {"optionalOldSelf": True} if self.compares_old else {}
        return {"rule": self.cel, "message": f"{self.message}: {self.fix}", **more}


class StrictModel(BaseModel):
    """The base class of every type that is read from a file."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", strict=True, frozen=True, allow_inf_nan=False
    )
    planned: ClassVar[frozenset[str]] = frozenset()
    misplaced: ClassVar[Mapping[str, str]] = MappingProxyType({})
    rules: ClassVar[tuple[Rule, ...]] = ()
    unique: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        """Treats a key without a value as absent, like the API server."""
        if not isinstance(data, dict):
            return data
        known = field_names(cls)
        return {key: value for key, value in data.items() if value is not None or key not in known}

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for rule in self.rules:
            violation = rule.violation(self) if rule.violation is not None else False
            if violation is not False:
                raise field_error(rule.message, rule.fix, at=rule.at if violation is True else violation)
        for field, attribute in self.unique.items():
            names = [getattr(item, attribute) if attribute else item for item in getattr(self, field)]
            _check_unique(type(self).model_fields[field].alias or field, names)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Returns the schema of the type with its rules."""
        schema = handler(core_schema)
        if cls.rules:
            handler.resolve_ref_schema(schema)["x-kubernetes-validations"] = [rule.schema() for rule in cls.rules]
        return schema


def _check_unique(items: str, names: list[Any]) -> None:
    """Raises PydanticCustomError if the list field `items` has two equal `names`.

    The error points to the second of them.
    """
    for index, name in enumerate(names):
        if name in names[:index]:
            message = f'the name "{name}" is already given in {items}[{names.index(name)}]'
            raise field_error(message, "give each a different name", at=(items, index))


def field_names(model: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in model.model_fields.items()]


def field_error(message: str, fix: str, at: FieldPath = ()) -> PydanticCustomError:
    """Returns the error for a validator to raise.

    fix: how to correct the value.
    at: path of the value below the validated one.
    """
    return PydanticCustomError("fairlead", "{message}", {"message": message, "fix": fix, "at": at})


def api_field(description: str, example: str | None = None, **constraints: Any) -> Any:
    """Returns a field of the API, as its reference describes it.

    example: YAML; error messages offer it as the fix.
    constraints: further arguments of pydantic's `Field`.
    """
    return Field(description=description, examples=None if example is None else [example], **constraints)


def api_list(
    description: str, example: str | None = None, *, key: str = "", is_set: bool = False, **constraints: Any
) -> Any:
    """Returns a field for a list, which is empty if it is left out.

    key: the field by which items are identified and merged.
    is_set: no item is there twice.
    """
    schema = list_map_schema(key) if key else {"x-kubernetes-list-type": "set"} if is_set else None
    return api_field(description, example, default_factory=list, json_schema_extra=schema, **constraints)


def list_map_schema(key: str) -> dict[str, Any]:
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
