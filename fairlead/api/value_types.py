"""Value types that several API types share: names, durations, sizes, labels and URLs."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_after_validator_function

from fairlead import units
from fairlead.api.strict_model import api_field, field_error
from fairlead.errors import BadInput
from fairlead.fleet.engine_url import normalize_endpoint_url
from fairlead.names import DNS_LABEL_PATTERN, DNS_SUBDOMAIN_PATTERN, SERVED_NAME_PATTERN

_LABEL_PATTERN = f"^{DNS_LABEL_PATTERN.pattern}$"
_SUBDOMAIN_PATTERN = f"^{DNS_SUBDOMAIN_PATTERN.pattern}$"
T = TypeVar("T")
Choice = Annotated[T, Field(strict=False)]
"""A member of an enumeration, which files write as text."""
Int32 = Annotated[int, Field(json_schema_extra={"format": "int32"})]
Int64 = Annotated[int, Field(json_schema_extra={"format": "int64"})]
MAX_LABEL_VALUE_LENGTH: Final = 63
"""Maximum length of the value of a Kubernetes label."""

_SUBDOMAIN_FIX: Final = "use lower-case letters, digits, - and ., at most {}, beginning and ending with neither"

ContextLength = Annotated[
    Int32 | None,
    api_field(
        "context of the model in tokens, as `/v1/models` shows it; left out = as its engines state it, which "
        "llama.cpp and most providers do not",
        "131072",
        ge=1,
        le=1 << 30,
    ),
]

_RESOURCE_PATTERN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"

_COST_PATTERN = units.USD_PATTERN

_MAX_COUNT = 4096
_PERCENT_PATTERN = r"^([1-9][0-9]?|100)%$"

_LABEL_VALUE_PATTERN = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_LABEL_KEY_PATTERN = re.compile(rf"({DNS_SUBDOMAIN_PATTERN.pattern}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?")

_LabelValue = Annotated[str, Field(json_schema_extra={"maxLength": MAX_LABEL_VALUE_LENGTH})]

_DURATION_FIELD = Field(json_schema_extra={"pattern": units.DURATION_PATTERN, "maxLength": 32})

RequestField = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]
"""The name of a field of a request body."""

FIXED_HEADERS: Final = frozenset(
    {
        *("host", "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings"),
        *("content-length", "content-type", "content-encoding", "accept-encoding", "expect"),
        *("proxy-authenticate", "proxy-authorization", "proxy-connection", "authorization", "x-api-key", "cookie"),
        *("x-request-id", "x-request-timeout", "x-data-parallel-rank", "x-fairlead-hops", "traceparent", "tracestate"),
    }
)
"""Headers of a connection, credentials of clients, and those that gateways set for engines."""

_DOMAIN_PATTERN = r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)$"

RequestPath = Annotated[str, Field(max_length=256, pattern=r"^/v1(/[A-Za-z0-9_~:@-][A-Za-z0-9._~:@-]*)+(/\*)?$")]
"""A path under `/v1`; a final `/*` stands for all paths below."""

_MAX_QUANTITY_SECONDS = 3600

_QUANTITY_SCHEMA = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "x-kubernetes-int-or-string": True,
    "minimum": 0,
    "maximum": _MAX_QUANTITY_SECONDS,
    "pattern": units.QUANTITY_PATTERN,
    "maxLength": 42,
}


@dataclass(frozen=True, slots=True)
class TextForm:
    """An annotation of text that has a form, which files and the API server check.

    Why not `pattern` of pydantic's `Field`: its error says no fix.

    message: follows the text in the error.
    min_length: only for the API server; the pattern itself refuses shorter text.
    """

    pattern: str
    message: str
    fix: str
    max_length: int
    min_length: int | None = None

    def __call__(self, text: str) -> str:
        """Returns the text. Raises PydanticCustomError for another form."""
        # `fullmatch`, since `$` would accept a line break at the end.
        if len(text) > self.max_length or not re.fullmatch(self.pattern, text):
            raise field_error(f'"{text:.70}" {self.message}', self.fix)
        return text

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        bounds = {"pattern": self.pattern, "minLength": self.min_length, "maxLength": self.max_length}
        return handler(schema) | {name: value for name, value in bounds.items() if value is not None}


def unit_check(parse: Callable[[str], object], *, normalizes: bool = False) -> Callable[[str], str]:
    """Returns a check of text that `parse` must be able to read.

    normalizes: the field gets what `parse` returns.
    """

    def check(text: str) -> str:
        try:
            parsed = parse(text)
        except BadInput as error:
            raise field_error(error.message, error.hint or "") from error
        return str(parsed) if normalizes else text

    return check


_LABEL: Final = TextForm(
    _LABEL_PATTERN, "is not a DNS label", "use lower-case letters, digits and -, at most 63", 63, 1
)
_SUBDOMAIN: Final = TextForm(_SUBDOMAIN_PATTERN, "is not a Kubernetes name", _SUBDOMAIN_FIX.format(253), 253, 1)
_SHORT_SUBDOMAIN: Final = replace(_SUBDOMAIN, fix=_SUBDOMAIN_FIX.format(MAX_LABEL_VALUE_LENGTH))


def _check_short_name(text: str) -> str:
    if len(_SHORT_SUBDOMAIN(text)) > MAX_LABEL_VALUE_LENGTH:
        raise field_error("is longer than 63 characters, and it becomes a label", "shorten it")
    return text


Label = Annotated[str, _LABEL]
Subdomain = Annotated[str, _SUBDOMAIN]
ObjectName = Annotated[str, _SHORT_SUBDOMAIN]
"""The name of one of Fairlead's objects. A rule of each kind says when it is too long."""
NamespaceOrAll = Annotated[str, TextForm(rf"^(\*|{DNS_LABEL_PATTERN.pattern})$", _LABEL.message, _LABEL.fix, 63, 1)]
"""The name of a namespace, or `*` for all."""
AllowedRoutes = Annotated[
    list[NamespaceOrAll],
    api_field(
        "namespaces whose ModelRoutes may lead to this model, besides its own; `*` = all",
        "[team-a]",
        max_length=64,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    ),
]
ShortName = Annotated[
    str,
    AfterValidator(_check_short_name),
    Field(json_schema_extra={"pattern": _SUBDOMAIN_PATTERN, "minLength": 1, "maxLength": MAX_LABEL_VALUE_LENGTH}),
]
"""A Kubernetes name that also fits into a label value."""


ResourceName = Annotated[
    str,
    TextForm(
        _RESOURCE_PATTERN, "is not the name of an extended resource", "write it like nvidia.com/gpu or rdma/ib", 253, 3
    ),
]

Cost = Annotated[str, TextForm(_COST_PATTERN, "is not an amount", 'write it as text without a sign, like "2.50"', 16)]
"""US dollars as text, so that no digit is lost."""


def _require_price_text(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise field_error(f"must be text, not the number {value:g}", f'write "{value:g}"')
    return value


UsdPerMillionTokens = Annotated[
    str,
    BeforeValidator(_require_price_text),
    AfterValidator(unit_check(units.parse_token_price)),
    Field(json_schema_extra={"pattern": units.TOKEN_PRICE_PATTERN, "maxLength": 16}),
]
"""US dollars per million tokens as text, in steps of 0.001."""


Size = Annotated[
    str,
    AfterValidator(unit_check(units.parse_size)),
    Field(json_schema_extra={"pattern": units.SIZE_PATTERN, "maxLength": 16}),
]


def _check_count_or_percent(value: Any) -> Any:
    fix = 'write a number from 1 to 4096, or a share of the pool such as "25%"'
    if isinstance(value, str) and re.fullmatch(_PERCENT_PATTERN, value):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        if 1 <= value <= _MAX_COUNT:
            return value
        raise field_error(f"must be from 1 to {_MAX_COUNT}, not {value}", fix)
    if isinstance(value, str) and re.fullmatch(r"[0-9]+ *%", value):
        raise field_error(f'a percentage is written from "1%" to "100%", not "{value:.70}"', fix)
    shown = f'"{value:.70}"' if isinstance(value, str) else value if isinstance(value, float) else type(value).__name__
    raise field_error(f"must be a whole number or a percentage, not {shown}", fix)


CountOrPercent = Annotated[
    int | str,
    BeforeValidator(_check_count_or_percent),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "minimum": 1,
            "maximum": _MAX_COUNT,
            "pattern": _PERCENT_PATTERN,
            "maxLength": 4,
        }
    ),
]


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not _LABEL_KEY_PATTERN.fullmatch(key):
            raise field_error(
                f'"{key:.70}" is not the key of a label', "write it like app or example.com/app", at=(key,)
            )
        if not _LABEL_VALUE_PATTERN.fullmatch(value):
            fix = "use letters, digits, -, _ and ., at most 63"
            raise field_error(f'"{value:.70}" is not the value of a label', fix, at=(key,))
    return labels


Labels = Annotated[dict[str, _LabelValue], AfterValidator(_check_labels)]
"""Kubernetes labels. Each use sets the maximum number of entries."""


EndpointUrl = Annotated[
    str,
    AfterValidator(unit_check(normalize_endpoint_url, normalizes=True)),
    Field(
        json_schema_extra={
            "pattern": r"^https?://[^\s/?#@]+(/[A-Za-z0-9._~-]+)*/?$",
            "minLength": 8,
            "maxLength": 512,
        }
    ),
]


def _require_unit(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise field_error(f"{value} has no unit", f"write {value:g}ms or {value:g}s")
    return value


_check_duration = unit_check(units.parse_duration)


def _check_positive_duration(text: str) -> str:
    if units.parse_duration(_check_duration(text)) <= 0:
        raise field_error("must be longer than 0 seconds", "write a duration such as 800ms, or leave the field out")
    return text


Duration = Annotated[str, BeforeValidator(_require_unit), AfterValidator(_check_duration), _DURATION_FIELD]


PositiveDuration = Annotated[
    str, BeforeValidator(_require_unit), AfterValidator(_check_positive_duration), _DURATION_FIELD
]


ServedName = Annotated[
    str,
    TextForm(
        f"^{SERVED_NAME_PATTERN.pattern}$",
        "is not a valid served name",
        "use 1 to 253 of letters, digits and . _ / : @ + -, such as Qwen/Qwen3-8B",
        253,
        1,
    ),
]
"""The name of a model in an engine."""


def _check_header(name: str) -> str:
    if name in FIXED_HEADERS:
        raise field_error(f"{name} is set by the gateway, or is a credential", "remove it")
    return name


RequestHeader = Annotated[
    str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"), AfterValidator(_check_header)
]
"""The name of a request header, in lower case."""

MediaDomain = Annotated[
    str,
    TextForm(
        _DOMAIN_PATTERN, "is not a host name", "write it without scheme, port and path, like images.example.com", 253, 1
    ),
]
"""The host of URLs, in lower case; `*` stands for all hosts."""


_check_share = unit_check(units.parse_percentage)


def check_percentage(value: Any) -> Any:
    """Returns a percentage such as `"95%"` unchanged. Raises PydanticCustomError for other text.

    It also raises for numbers. Other types are returned for the next validator.
    """
    fix = 'write it like "95%" or "99.9%"'
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 0 < value <= 1:
            fix = f'write "{units.format_percentage(value)}"'
        elif 1 < value <= 100:
            fix = f'write "{value:g}%"'
        raise field_error(f"must be a percentage, not the number {value:g}", fix)
    if isinstance(value, str) and units.parse_percentage(_check_share(value)) <= 0:
        raise field_error("must be more than 0%", fix)
    return value


Percentage = Annotated[
    str,
    BeforeValidator(check_percentage),
    Field(json_schema_extra={"pattern": units.PERCENTAGE_PATTERN, "maxLength": 11}),
]
"""A share of requests, more than 0% and at most 100%."""

_check_unit = unit_check(units.parse_quantity)


def _check_quantity(value: Any) -> Any:
    """Returns the value unchanged if it is a number of seconds as Kubernetes writes quantities."""
    if isinstance(value, float):
        fix = f"write {units.format_quantity(value)}" if value >= 0 else "write it like 36u"
        raise field_error(f"must be a quantity, not the number {value:g}", fix)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise field_error("must be a quantity", 'write it like "36u", "1.5m" or "3.6e-05"')
    number = units.parse_quantity(_check_unit(value) if isinstance(value, str) else value)
    if not 0 <= number <= _MAX_QUANTITY_SECONDS:
        raise field_error(
            f"must be from 0 to {_MAX_QUANTITY_SECONDS}, not {value}", "write a number of seconds in that range"
        )
    return value


def _check_positive_quantity(value: Any) -> Any:
    if units.parse_quantity(_check_quantity(value)) <= 0:
        raise field_error("must be more than 0", 'write it like "36u"')
    return value


Quantity = Annotated[int | str, BeforeValidator(_check_quantity), WithJsonSchema(_QUANTITY_SCHEMA)]
"""A number as Kubernetes writes quantities: ``36u``, ``1.5m``, ``0.002``, ``3.6e-05``."""
PositiveQuantity = Annotated[int | str, BeforeValidator(_check_positive_quantity), WithJsonSchema(_QUANTITY_SCHEMA)]
