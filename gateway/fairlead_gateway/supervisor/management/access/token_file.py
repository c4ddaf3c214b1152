"""The file of management tokens: their names, digests and scopes.

A digest is the token's HMAC-SHA-256 under the installation's pepper, as with API keys. A reader of
the file learns no token.
"""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails

from fairlead.api.strict_model import StrictModel, field_error
from fairlead.errors import FileProblem, ManifestError, Unavailable
from fairlead.limits import Limits
from fairlead.manifests.yaml_nodes import YamlNode, decode_file, format_path, parse_documents
from fairlead_gateway.supervisor.management.access.access_scope import AccessScope, Permission
from fairlead_gateway.supervisor.management.access.manage_tokens import INSTALLATION_TOKEN_NAME, LOCAL_NAME

_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")
_FIX: Final = "write `tokens: [{name: acme-team, digest: 64 hexadecimal digits, tenants: [acme], may: [Read]}]`"


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
    """Returns the scopes by digest. Raises ManifestError with every problem.

    No message repeats the text in place of a digest, since it may be a token.
    """
    documents = parse_documents(text, file=file, limits=limits)
    if len(documents) != 1:
        message = "the file is empty" if not documents else f"{len(documents)} YAML documents instead of one"
        raise ManifestError((FileProblem(file, 1, "(document)", message, "begin with `tokens:`"),))
    node = documents[0]
    raw = node.to_python()
    if isinstance(raw, dict) and raw.get("tokens", ()) is None:  # `tokens:` with nothing after it
        raw["tokens"] = []
    try:
        content = _TokenFileContent.model_validate(raw, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ManifestError(tuple(_problem(item, node, file) for item in error.errors(include_url=False))) from None
    if len(content.tokens) > limits.manage_tokens:
        message = f"{len(content.tokens):,} tokens; the limit is {limits.manage_tokens:,}"
        line = node.locate(("tokens",)).line
        raise ManifestError((FileProblem(file, line, "tokens", message, "remove those not in use"),))
    _refuse_repeats(content, node, file)
    return {bytes.fromhex(token.digest): token.scope() for token in content.tokens}


def _refuse_repeats(content: "_TokenFileContent", node: YamlNode, file: str) -> None:
    """Raises ManifestError if a digest occurs twice.

    A name may occur twice: two tokens overlap while one replaces the other.
    """
    seen: set[str] = set()
    problems = []
    for number, token in enumerate(content.tokens):
        path = ("tokens", number, "digest")
        if token.digest.lower() in seen:
            text = "this digest is already given"
            problems.append(FileProblem(file, node.locate(path).line, format_path(path), text, "keep one of the two"))
        seen.add(token.digest.lower())
    if problems:
        raise ManifestError(tuple(problems))


def _problem(error: ErrorDetails, node: YamlNode, file: str) -> FileProblem:
    """Returns a validation error without the value, which may be a token in the wrong field."""
    unknown = error["type"] == "extra_forbidden"
    path = error["loc"][:-1] if unknown else error["loc"]
    path = tuple(part for part in path if not (isinstance(part, str) and part.startswith(("literal[", "list["))))
    context = error.get("ctx", {})
    if error["type"] == "fairlead":
        message, fix = str(context["message"]), str(context["fix"])
    else:
        message = {"missing": "is missing", "extra_forbidden": "has an unknown field"}.get(
            error["type"], "is malformed"
        )
        fix = _FIX
    return FileProblem(file, node.locate(path).line, format_path(path), message, fix)


def _check_name(text: str) -> str:
    if not 0 < len(text) <= 253 or not all("!" <= char <= "~" for char in text):
        raise field_error("this cannot name a token", "use 1 to 253 visible ASCII characters without spaces")
    if text in (INSTALLATION_TOKEN_NAME, LOCAL_NAME):
        raise field_error("this name means the token of the installation", "choose another name")
    return text


def _check_digest(value: Any) -> Any:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise field_error(
            "this is not a digest",
            "write the token's HMAC-SHA-256 as 64 hexadecimal digits, in quotes; never the token",
        )
    return value


def _parse_permission(value: Any) -> Permission:
    try:
        return Permission(value)
    except ValueError:
        names = ", ".join(permission.value for permission in Permission)
        raise field_error("this is not a permission", f"write one or more of {names}") from None


class _TokenEntry(StrictModel):
    name: Annotated[str, AfterValidator(_check_name)]
    digest: Annotated[str, BeforeValidator(_check_digest)]
    tenants: Literal["all"] | Annotated[list[str], Field(min_length=1)]
    may: Annotated[list[Annotated[Permission, BeforeValidator(_parse_permission)]], Field(min_length=1)]

    def scope(self) -> AccessScope:
        """Returns what the token may see."""
        tenants = None if self.tenants == "all" else frozenset(self.tenants)
        return AccessScope(self.name, tenants, frozenset(self.may))


class _TokenFileContent(StrictModel):
    tokens: list[_TokenEntry]
