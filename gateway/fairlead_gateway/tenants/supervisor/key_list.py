"""The content of a keys file: the API keys that clients may use, by name and digest."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator

from fairlead.api.strict_model import StrictModel
from fairlead.limits import Limits
from fairlead_gateway.tenants.supervisor.digest_list import DigestListForm, check_digest, check_name, parse_digest_list

KEYS: Final = 100_000
"""Limit: API keys in a keys file."""


def parse_key_file(text: str, *, file: str, limits: Limits) -> Mapping[bytes, str]:
    """Returns the names by digest. Raises ManifestError with every problem."""
    form = DigestListForm("keys", KEYS, "write `keys: [{name: team-a, digest: 64 hexadecimal digits}]`")
    content = parse_digest_list(_KeyFileContent, text, form, file=file, limits=limits)
    return {bytes.fromhex(key.digest): key.name for key in content.keys}


class _KeyEntry(StrictModel):
    name: Annotated[str, AfterValidator(partial(check_name, noun="key"))]
    digest: Annotated[str, BeforeValidator(partial(check_digest, noun="key"))]


class _KeyFileContent(StrictModel):
    keys: list[_KeyEntry]
