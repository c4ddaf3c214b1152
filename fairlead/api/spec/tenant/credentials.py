"""`spec.keys` and `spec.subjects` of a ModelTenant: what identifies its requests.

No message repeats what is given in place of a digest or a key's name, since it may be a key.
"""

import re
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fairlead.api.strict_model import Rule, StrictModel, api_field, field_error
from fairlead.names import DNS_LABEL_PATTERN
from fairlead.tenants.model import ApiKey

_DIGEST_PATTERN: Final = r"^[0-9a-fA-F]{64}$"
_DIGEST: Final = re.compile(_DIGEST_PATTERN.strip("^$"))
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
_ISSUER_PATTERN: Final = r"^https://[^\s?#]+$"


_KEYS_FIX: Final = 'write it like `keys: [{name: prod, digest: "64 hexadecimal digits"}]`; never the key'


def check_keys(value: Any) -> Any:
    """Returns a list unchanged. For anything else, raises PydanticCustomError that does not
    repeat it.
    """
    if not isinstance(value, list):
        raise field_error("must be a list", _KEYS_FIX)
    return value


def _check_digest(value: Any) -> Any:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise field_error(
            "this is not a digest", "write the key's HMAC-SHA-256 as 64 hexadecimal digits, in quotes; never the key"
        )
    return value


def _check_key_name(value: Any) -> Any:
    if not isinstance(value, str) or not DNS_LABEL_PATTERN.fullmatch(value):
        raise field_error("this cannot name a key", "use lower-case letters, digits and -, at most 63; never the key")
    return value


def _check_time(text: str) -> str:
    try:
        if _TIME.fullmatch(text):
            datetime.fromisoformat(text)
            return text
    except ValueError:
        pass  # such as the 31st of February
    raise field_error(f'"{text:.40}" is not a time', 'write it with a time zone, like "2027-01-01T00:00:00Z"')


KeyName = Annotated[
    str,
    BeforeValidator(_check_key_name),
    Field(json_schema_extra={"pattern": f"^{DNS_LABEL_PATTERN.pattern}$", "maxLength": 63}),
]
"""The name of one of the tenant's keys, where another field refers to it."""


class TenantKey(StrictModel):
    """An API key, of which only the digest is written."""

    # Why rules and no patterns: the API server's errors about patterns repeat the value.
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"self.name.matches('^{DNS_LABEL_PATTERN.pattern}$')",
            message="this cannot name a key",
            fix="use lower-case letters, digits and -, at most 63; never the key",
            at=("name",),
        ),
        Rule(
            cel=f"self.digest.matches('{_DIGEST_PATTERN}')",
            message="this is not a digest",
            fix="write the key's HMAC-SHA-256 as 64 hexadecimal digits, in quotes; never the key",
            at=("digest",),
        ),
    )

    name: Annotated[
        str,
        BeforeValidator(_check_key_name),
        api_field("name of the key in logs, metrics and limits", "prod", json_schema_extra={"maxLength": 63}),
    ]
    digest: Annotated[
        str,
        BeforeValidator(_check_digest),
        api_field(
            "HMAC-SHA-256 of the key under the installation's pepper, in hexadecimal",
            json_schema_extra={"maxLength": 64},
        ),
    ]
    expires_at: Annotated[
        str | None,
        AfterValidator(_check_time),
        api_field(
            "time from which the key is refused; left out = it does not expire",
            '"2027-01-01T00:00:00Z"',
            json_schema_extra={"format": "date-time", "maxLength": 40},
        ),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _require_mapping(cls, data: Any) -> Any:
        """Refuses other values here, since the general error would repeat them."""
        if not isinstance(data, dict):
            raise field_error("a key is a mapping of its name and its digest", _KEYS_FIX)
        return data

    def to_api_key(self) -> ApiKey:
        """Returns the key as gateways use it."""
        expires_at = None if self.expires_at is None else datetime.fromisoformat(self.expires_at).timestamp()
        return ApiKey(self.name, bytes.fromhex(self.digest), expires_at)


class TenantSubject(StrictModel):
    """The bearer tokens of one issuer that identify the tenant."""

    issuer: Annotated[
        str,
        api_field(
            "issuer of the tokens, the claim `iss`",
            '"https://login.example.com"',
            max_length=512,
            pattern=_ISSUER_PATTERN,
        ),
    ]
    claim: Annotated[
        str, api_field("claim that is compared with `value`", "sub", min_length=1, max_length=128, pattern=r"^[!-~]+$")
    ] = "sub"
    value: Annotated[
        str, api_field("value of the claim", '"system:serviceaccount:team-a:app"', min_length=1, max_length=512)
    ]
