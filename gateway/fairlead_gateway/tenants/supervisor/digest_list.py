"""Files that list names with digests: API keys, and management tokens.

A digest is an HMAC-SHA-256 under the installation's pepper. A reader of such a file learns no
secret, and cannot even test guesses without the pepper.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fairlead.api.strict_model import field_error
from fairlead.errors import FileProblem, ManifestError
from fairlead.limits import Limits
from fairlead.manifests.yaml_nodes import YamlNode, format_path, parse_documents

_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")
_TAGS: Final = ("literal[", "list[")
"""Beginnings of parts that pydantic adds to the path of a value with several types."""


class DigestEntry(Protocol):
    """An entry of a list."""

    digest: str


_Content = TypeVar("_Content", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class DigestListForm:
    """The form of a file.

    field: the field with the list; also what its entries are called.
    fix: an example of the list.
    """

    field: str
    max_entries: int
    fix: str


def parse_digest_list(
    content_type: type[_Content], text: str, form: DigestListForm, *, file: str, limits: Limits
) -> _Content:
    """Returns the content of a file. Raises ManifestError with every problem.

    No message repeats the text in place of a digest, since it may be a secret. A name may occur
    twice: two entries overlap while one replaces the other.
    """
    documents = parse_documents(text, file=file, limits=limits)
    if len(documents) != 1:
        message = "the file is empty" if not documents else f"{len(documents)} YAML documents instead of one"
        raise ManifestError((FileProblem(file, 1, "(document)", message, f"begin with `{form.field}:`"),))
    node = documents[0]
    raw = node.to_python()
    if isinstance(raw, dict) and raw.get(form.field, ()) is None:  # the field with nothing after it
        raw[form.field] = []
    try:
        content = content_type.model_validate(raw, by_alias=True, by_name=False)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise ManifestError(tuple(_problem(item, node, form, file) for item in found)) from None
    entries: Sequence[DigestEntry] = getattr(content, form.field)
    if len(entries) > form.max_entries:
        message = f"{len(entries):,} {form.field}; the limit is {form.max_entries:,}"
        line = node.locate((form.field,)).line
        raise ManifestError((FileProblem(file, line, form.field, message, "remove those not in use"),))
    _refuse_repeats(entries, node, form, file)
    return content


def check_name(text: str, noun: str) -> str:
    """Returns a name of visible ASCII characters. Raises the error of another one.

    Why: a letter that looks like another one would name nothing, and show no difference.
    """
    if not 0 < len(text) <= 253 or not all("!" <= char <= "~" for char in text):
        raise field_error(f"this cannot name a {noun}", "use 1 to 253 visible ASCII characters without spaces")
    return text


def check_digest(value: Any, noun: str) -> Any:
    """Returns a digest. Raises the error of anything else."""
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise field_error(
            "this is not a digest",
            f"write the {noun}'s HMAC-SHA-256 as 64 hexadecimal digits, in quotes; never the {noun}",
        )
    return value


def _refuse_repeats(entries: Sequence[DigestEntry], node: YamlNode, form: DigestListForm, file: str) -> None:
    line_of: dict[str, int] = {}
    problems = []
    for number, entry in enumerate(entries):
        path = (form.field, number, "digest")
        line, digest = node.locate(path).line, entry.digest.lower()
        if digest in line_of:
            message = f"this digest is already given on line {line_of[digest]}"
            problems.append(FileProblem(file, line, format_path(path), message, "keep one of the two"))
        line_of.setdefault(digest, line)
    if problems:
        raise ManifestError(tuple(problems))


def _problem(error: ErrorDetails, node: YamlNode, form: DigestListForm, file: str) -> FileProblem:
    """Returns a validation error without the value, which may be a secret in the wrong field."""
    unknown = error["type"] == "extra_forbidden"
    path = error["loc"][:-1] if unknown else error["loc"]
    path = tuple(part for part in path if not (isinstance(part, str) and part.startswith(_TAGS)))
    context = error.get("ctx", {})
    if error["type"] == "fairlead":
        message, fix = str(context["message"]), str(context["fix"])
    else:
        known = {"missing": "is missing", "extra_forbidden": "has an unknown field"}
        message, fix = known.get(error["type"], "is malformed"), form.fix
    return FileProblem(file, node.locate(path).line, format_path(path), message, fix)
