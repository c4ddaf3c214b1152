"""The keys file: which API keys may call, by name and digest.

A file names each key and gives its HMAC-SHA-256 under the installation's pepper. Whoever reads the file learns no key, and cannot
even try guesses without the pepper.
"""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ValidationError
from pydantic_core import ErrorDetails

from fairlead.api.strict_model import StrictModel, field_error
from fairlead.errors import FileProblem, ManifestError, Unavailable
from fairlead.limits import Limits
from fairlead.manifests.yaml_nodes import YamlNode, decode_file, format_path, parse_documents

_DIGEST_PATTERN = re.compile(r"[0-9a-fA-F]{64}")


class KeyFile:
    """One file; ``names`` is what it said when it was last read well."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path = path
        self._limits = limits
        self.names_by_digest: Mapping[bytes, str] = {}

    async def load(self) -> None:
        """Read the file. Raises FairleadError and keeps what it had."""
        self.names_by_digest = await asyncio.to_thread(self._read)

    def _read(self) -> Mapping[bytes, str]:
        try:
            raw = self.path.read_bytes()
        except OSError as error:
            raise Unavailable(f"cannot read {self.path}: {error.strerror or error}") from error
        return parse_key_file(
            decode_file(raw, file=str(self.path), limits=self._limits), file=str(self.path), limits=self._limits
        )


def parse_key_file(text: str, *, file: str, limits: Limits) -> Mapping[bytes, str]:
    """Digest → name. Raises ManifestError with every problem; no message repeats what stands for a digest."""
    found = parse_documents(text, file=file, limits=limits)
    if len(found) != 1:
        message = "the file is empty" if not found else f"{len(found)} YAML documents, a keys file has one"
        raise ManifestError((FileProblem(file, 1, "(document)", message, "begin with `keys:`"),))
    node = found[0]
    try:
        content = _KeyFileContent.model_validate(node.to_python(), by_alias=True, by_name=False)
    except ValidationError as error:
        raise ManifestError(tuple(_problem(item, node, file) for item in error.errors(include_url=False))) from None
    if len(content.keys) > limits.keys:
        message = f"{len(content.keys):,} keys, at most {limits.keys:,} are read"
        raise ManifestError(
            (FileProblem(file, node.locate(("keys",)).line, "keys", message, "remove those not in use"),)
        )
    _refuse_repeats(content, node, file)
    return {bytes.fromhex(one.digest): one.name for one in content.keys}


def _refuse_repeats(content: "_KeyFileContent", node: YamlNode, file: str) -> None:
    """One key cannot be two callers. One caller may have several keys: that is how keys are changed."""
    taken: dict[str, int] = {}
    problems = []
    for number, one in enumerate(content.keys):
        path = ("keys", number, "digest")
        line = node.locate(path).line
        if one.digest.lower() in taken:
            message = f"this digest is already given on line {taken[one.digest.lower()]}"
            problems.append(FileProblem(file, line, format_path(path), message, "keep one of the two"))
        taken.setdefault(one.digest.lower(), line)
    if problems:
        raise ManifestError(tuple(problems))


def _problem(item: ErrorDetails, node: YamlNode, file: str) -> FileProblem:
    """A finding without the value: what stands in the wrong place here may be a key."""
    unknown = item["type"] == "extra_forbidden"
    path = item["loc"][:-1] if unknown else item["loc"]
    context = item.get("ctx", {})
    if item["type"] == "fairlead":
        message, fix = str(context["message"]), str(context["fix"])
    else:
        message = {"missing": "is missing", "extra_forbidden": "holds an unknown field"}.get(
            item["type"], "is malformed"
        )
        fix = "write `keys: [{name: team-a, digest: 64 hexadecimal digits}]`"
    return FileProblem(file, node.locate(path).line, format_path(path), message, fix)


def _check_name(text: str) -> str:
    if not 0 < len(text) <= 253 or not all("!" <= char <= "~" for char in text):
        raise field_error("this cannot name a key", "use 1 to 253 visible ASCII characters without spaces")
    return text


def _check_digest(value: Any) -> Any:
    if not isinstance(value, str) or not _DIGEST_PATTERN.fullmatch(value):
        raise field_error(
            "this is not a digest", "write the key's HMAC-SHA-256 as 64 hexadecimal digits, in quotes; never the key"
        )
    return value


class _KeyEntry(StrictModel):
    name: Annotated[str, AfterValidator(_check_name)]
    digest: Annotated[str, BeforeValidator(_check_digest)]


class _KeyFileContent(StrictModel):
    keys: list[_KeyEntry]
