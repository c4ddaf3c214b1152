"""The file of management tokens: their names, digests and scopes.

A digest is the token's HMAC-SHA-256 under the installation's pepper, as with API keys. A reader of
the file learns no token.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from fairlead.api.strict_model import StrictModel, field_error
from fairlead.errors import Unavailable
from fairlead.limits import Limits
from fairlead.manifests.yaml_nodes import decode_file
from fairlead_gateway.supervisor.management.access.access_scope import AccessScope, Permission
from fairlead_gateway.supervisor.management.access.manage_tokens import INSTALLATION_TOKEN_NAME, LOCAL_NAME
from fairlead_gateway.tenants.supervisor.digest_list import DigestListForm, check_digest, check_name, parse_digest_list

_FIX: Final = "write `tokens: [{name: acme-team, digest: 64 hexadecimal digits, tenants: [acme], may: [Read]}]`"

_TenantName = Annotated[str, AfterValidator(partial(check_name, noun="tenant"))]


async def load_token_file(path: Path, limits: Limits) -> Mapping[bytes, AccessScope]:
    """Returns the scopes by digest. Raises Unavailable, or ManifestError with every problem."""
    return await asyncio.to_thread(_load, path, limits)


def _load(path: Path, limits: Limits) -> Mapping[bytes, AccessScope]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror or error}") from error
    return parse_token_file(decode_file(raw, file=str(path), limits=limits), file=str(path), limits=limits)


def parse_token_file(text: str, *, file: str, limits: Limits) -> Mapping[bytes, AccessScope]:
    """Returns the scopes by digest. Raises ManifestError with every problem."""
    form = DigestListForm("tokens", limits.manage_tokens, _FIX)
    content = parse_digest_list(_TokenFileContent, text, form, file=file, limits=limits)
    return {bytes.fromhex(token.digest): token.scope() for token in content.tokens}


def _check_name(text: str) -> str:
    if text in (INSTALLATION_TOKEN_NAME, LOCAL_NAME):
        raise field_error("this name means the token of the installation", "choose another name")
    return check_name(text, "token")


def _parse_permission(value: Any) -> Permission:
    try:
        return Permission(value)
    except ValueError:
        names = ", ".join(permission.value for permission in Permission)
        raise field_error("this is not a permission", f"write one or more of {names}") from None


class _TokenEntry(StrictModel):
    name: Annotated[str, AfterValidator(_check_name)]
    digest: Annotated[str, BeforeValidator(partial(check_digest, noun="token"))]
    tenants: Literal["all"] | Annotated[list[_TenantName], Field(min_length=1)]
    may: Annotated[list[Annotated[Permission, BeforeValidator(_parse_permission)]], Field(min_length=1)]

    def scope(self) -> AccessScope:
        tenants = None if self.tenants == "all" else frozenset(self.tenants)
        return AccessScope(self.name, tenants, frozenset(self.may))


class _TokenFileContent(StrictModel):
    tokens: list[_TokenEntry]
