"""The small values that several API types share: names, sizes, labels, and how the server is told of them."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from fairlead import units
from fairlead.endpoints import engine_url
from fairlead.errors import BadInput
from fairlead.names import DNS_LABEL, DNS_SUBDOMAIN
from fairlead.strict import wrong

_LABEL_PATTERN = f"^{DNS_LABEL.pattern}$"
_SUBDOMAIN_PATTERN = f"^{DNS_SUBDOMAIN.pattern}$"
LABEL_VALUE_LENGTH: Final = 63
"""What becomes the value of a Kubernetes label may not be longer."""


def _label(text: str) -> str:
    if not DNS_LABEL.fullmatch(text):
        raise wrong(f'"{text:.70}" is not a DNS label', "use lower-case letters, digits and -, at most 63")
    return text


def _subdomain(text: str) -> str:
    if len(text) > 253 or not DNS_SUBDOMAIN.fullmatch(text):
        message = f'"{text:.70}" is not a Kubernetes name'
        raise wrong(message, "use lower-case letters, digits, - and ., at most 253, beginning and ending with neither")
    return text


def _short(text: str) -> str:
    if len(_subdomain(text)) > LABEL_VALUE_LENGTH:
        raise wrong("is longer than 63 characters, and it becomes a label", "shorten it")
    return text


Label = Annotated[
    str, AfterValidator(_label), Field(json_schema_extra={"pattern": _LABEL_PATTERN, "minLength": 1, "maxLength": 63})
]
Subdomain = Annotated[
    str,
    AfterValidator(_subdomain),
    Field(json_schema_extra={"pattern": _SUBDOMAIN_PATTERN, "minLength": 1, "maxLength": 253}),
]
ShortName = Annotated[
    str,
    AfterValidator(_short),
    Field(json_schema_extra={"pattern": _SUBDOMAIN_PATTERN, "minLength": 1, "maxLength": LABEL_VALUE_LENGTH}),
]
"""A Kubernetes name that also fits into a label."""


def unique(items: str, names: list[str]) -> None:
    """Refuse the second of two equal names in the list field ``items``."""
    for index, name in enumerate(names):
        if name in names[:index]:
            message = f'the name "{name}" is already given in {items}[{names.index(name)}]'
            raise wrong(message, "give each a name of its own", at=(items, index))


def list_map(key: str) -> dict[str, Any]:
    """Schema of a list whose items the server tells apart, and merges, by one field."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


def _matching(pattern: str, message: str, fix: str, most: int) -> Callable[[str], str]:
    known = re.compile(pattern)

    def check(text: str) -> str:
        if len(text) > most or not known.fullmatch(text):
            raise wrong(f'"{text:.70}" {message}', fix)
        return text

    return check


# The end of the text is \Z in Python, where $ would let a line break through; the server's language has only $.
_RESOURCE_PATTERN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
ResourceName = Annotated[
    str,
    AfterValidator(
        _matching(
            _RESOURCE_PATTERN, "is not the name of an extended resource", "write it like nvidia.com/gpu or rdma/ib", 253
        )
    ),
    Field(json_schema_extra={"pattern": _RESOURCE_PATTERN, "minLength": 3, "maxLength": 253}),
]

_COST_PATTERN = r"^[0-9]{1,9}(\.[0-9]{1,6})?$"
Cost = Annotated[
    str,
    AfterValidator(_matching(_COST_PATTERN, "is not an amount", 'write it as text without a sign, like "2.50"', 16)),
    Field(json_schema_extra={"pattern": _COST_PATTERN, "maxLength": 16}),
]
"""US dollars as text, so that no digit is lost."""


def _size(text: str) -> str:
    try:
        units.size_bytes(text)
    except BadInput as error:
        raise wrong(error.message, error.hint or "") from error
    return text


Size = Annotated[str, AfterValidator(_size), Field(json_schema_extra={"pattern": units.SIZE_PATTERN, "maxLength": 16})]

_COUNT_MOST = 4096
_PERCENT_PATTERN = r"^([1-9][0-9]?|100)%$"


def _count_or_percent(value: Any) -> Any:
    fix = 'write a number from 1 to 4096, or a share of the pool such as "25%"'
    if isinstance(value, str) and re.fullmatch(_PERCENT_PATTERN, value):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        if 1 <= value <= _COUNT_MOST:
            return value
        raise wrong(f"must be from 1 to {_COUNT_MOST}, not {value}", fix)
    if isinstance(value, str) and re.fullmatch(r"[0-9]+ *%", value):
        raise wrong(f'a percentage is written from "1%" to "100%", not "{value:.70}"', fix)
    shown = f'"{value:.70}"' if isinstance(value, str) else value if isinstance(value, float) else type(value).__name__
    raise wrong(f"must be a whole number or a percentage, not {shown}", fix)


CountOrPercent = Annotated[
    int | str,
    BeforeValidator(_count_or_percent),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "minimum": 1,
            "maximum": _COUNT_MOST,
            "pattern": _PERCENT_PATTERN,
            "maxLength": 4,
        }
    ),
]

_LABEL_TEXT = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_LABEL_KEY = re.compile(rf"({DNS_SUBDOMAIN.pattern}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?")


def _labels(found: dict[str, str]) -> dict[str, str]:
    for key, value in found.items():
        if not _LABEL_KEY.fullmatch(key):
            raise wrong(f'"{key:.70}" is not the key of a label', "write it like app or example.com/app", at=(key,))
        if not _LABEL_TEXT.fullmatch(value):
            fix = "use letters, digits, -, _ and ., at most 63"
            raise wrong(f'"{value:.70}" is not the value of a label', fix, at=(key,))
    return found


_LABEL_VALUE = Annotated[str, Field(json_schema_extra={"maxLength": LABEL_VALUE_LENGTH})]
Labels = Annotated[dict[str, _LABEL_VALUE], AfterValidator(_labels)]
"""Labels of Kubernetes; bound the number of entries where it is used."""


def _url(text: str) -> str:
    try:
        return engine_url(text)
    except BadInput as error:
        raise wrong(error.message, error.hint or "") from error


EngineUrl = Annotated[
    str,
    AfterValidator(_url),
    Field(json_schema_extra={"pattern": r"^https?://[^\s/?#@]+/?$", "minLength": 8, "maxLength": 512}),
]
