"""The schemas of the management API's JSON, from which OpenAPI is generated.

They are made from the types of `fairlead.management_api`, so that no field is listed twice;
pydantic stays where the framework is.
"""

import inspect
import re
from dataclasses import is_dataclass
from functools import cache, reduce
from operator import or_
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from msgspec import NODEFAULT, Struct, structs
from pydantic import BaseModel, ConfigDict, Field, create_model

from fairlead import management_api as api
from fairlead.audit.record import AuditRecord
from fairlead.fleet.hung_engines import EjectionReport
from fairlead.routes.model import Shadow

_NAMES: Final[dict[type, str]] = {
    AuditRecord: "AuditRecordOut",
    EjectionReport: "EjectionOut",
    Shadow: "DeclaredShadowOut",
}
_OMITTED: Final = {"log"}
"""Fields of records that the API does not show."""
_OPTIONAL: Final[dict[type, set[str]]] = {
    api.RouteOut: {"fallbacks", "withheld"},
    api.DecisionOut: {"route", "kept_back"},
    api.RoutePreviewOut: {"fallbacks"},
    api.ErrorBodyOut: {"param", "code", "hint"},
    AuditRecord: {"tenant", "before", "after", "reason", "request_id"},
}
"""Fields that the schema does not require. All others are in every answer."""


@cache
def schema_of(answer: type) -> type[BaseModel]:
    """Returns the schema of a type of answers; it reads the attributes of their values."""
    texts: dict[str, str] = {}
    for base in reversed(answer.__mro__):
        texts |= _split_docstring(base)[1]
    fields: dict[str, Any] = {
        name: (_schema_type(hint), Field(description=texts.get(name)))
        for name, hint in get_type_hints(answer).items()
        if name not in _OMITTED
    }
    optional = _OPTIONAL.get(answer, set())
    for field in structs.fields(answer) if optional else ():
        if field.name in optional:
            # Field() writes a default into the description, but no result of a factory.
            default: dict[str, Any] = {"default_factory": list} if field.default_factory is list else {"default": {}}
            default = default if field.default is NODEFAULT else {"default": field.default}
            fields[field.name] = (fields[field.name][0], Field(description=texts.get(field.name), **default))
    return create_model(
        _NAMES.get(answer, answer.__name__),
        __config__=ConfigDict(extra="forbid", frozen=True, from_attributes=True),
        __doc__=_split_docstring(answer)[0],
        **fields,
    )


def _split_docstring(answer: type) -> tuple[str, dict[str, str]]:
    summary, *items = re.split(r"^- (\w+): ", inspect.cleandoc(answer.__doc__ or ""), flags=re.MULTILINE)
    return summary.strip(), {name: " ".join(text.split()) for name, text in zip(items[::2], items[1::2], strict=True)}


def _schema_type(hint: Any) -> Any:
    """Returns a type with schemas in place of the types of answers."""
    arguments = tuple(_schema_type(argument) for argument in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return reduce(or_, arguments)
    if arguments:
        return get_origin(hint)[arguments]
    return schema_of(hint) if issubclass(hint, Struct) or is_dataclass(hint) else hint
