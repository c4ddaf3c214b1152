"""The content of a keys file: the API keys that clients may use, by name and digest.

The file has each key's name and its HMAC-SHA-256 under the installation's pepper. A reader of the
file learns no key, and cannot even test guesses without the pepper.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ValidationError
from pydantic_core import ErrorDetails

from fairlead.api.strict_model import StrictModel, field_error
from fairlead.errors import FileProblem, ManifestError
from fairlead.limits import Limits
from fairlead.manifests.yaml_nodes import YamlNode, format_path, parse_documents

_DIGEST_PATTERN = re.compile(r"[0-9a-fA-F]{64}")


def parse_key_file(text: str, *, file: str, limits: Limits) -> Mapping[bytes, str]:
    """Returns the names by digest. Raises ManifestError with every problem.

    No message repeats the text in place of a digest, since it may be a key.
    """
    documents = parse_documents(text, file=file, limits=limits)
    if len(documents) != 1:
        message = "the file is empty" if not documents else f"{len(documents)} YAML documents instead of one"
        raise ManifestError((FileProblem(file, 1, "(document)", message, "begin with `keys:`"),))
    node = documents[0]
    raw = node.to_python()
    if isinstance(raw, dict) and raw.get("keys", ()) is None:  # `keys:` with nothing after it
        raw["keys"] = []
    try:
        content = _KeyFileContent.model_validate(raw, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ManifestError(tuple(_problem(item, node, file) for item in error.errors(include_url=False))) from None
    if len(content.keys) > limits.keys:
        message = f"{len(content.keys):,} keys; the limit is {limits.keys:,}"
        raise ManifestError(
            (FileProblem(file, node.locate(("keys",)).line, "keys", message, "remove those not in use"),)
        )
    _refuse_repeats(content, node, file)
    return {bytes.fromhex(key.digest): key.name for key in content.keys}


def _refuse_repeats(content: "_KeyFileContent", node: YamlNode, file: str) -> None:
    """Raises ManifestError if a digest occurs twice.

    A name may occur twice: a client has two keys while it changes from one to the other.
    """
    line_of: dict[str, int] = {}
    problems = []
    for number, key in enumerate(content.keys):
        path = ("keys", number, "digest")
        line = node.locate(path).line
        if key.digest.lower() in line_of:
            message = f"this digest is already given on line {line_of[key.digest.lower()]}"
            problems.append(FileProblem(file, line, format_path(path), message, "keep one of the two"))
        line_of.setdefault(key.digest.lower(), line)
    if problems:
        raise ManifestError(tuple(problems))


def _problem(error: ErrorDetails, node: YamlNode, file: str) -> FileProblem:
    """Returns a validation error without the value, which may be a key in the wrong field."""
    unknown = error["type"] == "extra_forbidden"
    path = error["loc"][:-1] if unknown else error["loc"]
    context = error.get("ctx", {})
    if error["type"] == "fairlead":
        message, fix = str(context["message"]), str(context["fix"])
    else:
        message = {"missing": "is missing", "extra_forbidden": "has an unknown field"}.get(
            error["type"], "is malformed"
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
