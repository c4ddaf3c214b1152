"""Conversion of manifest files to the words of this release."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlead.api.v1alpha1 import API_VERSION
from fairlead.errors import BadInput, ManifestError
from fairlead.limits import Limits
from fairlead.manifests.convert_text import TextConversion, convert_text
from fairlead.manifests.loader import STDIN_PATH, read_object, read_texts
from fairlead.runtime.atomic_write import write_atomic


def convert_files(paths: Sequence[str], *, in_place: bool) -> int:
    """Converts all files, or none when one has a problem. Returns the exit code."""
    if in_place and STDIN_PATH in paths:
        raise BadInput("standard input cannot be rewritten", field="--in-place", hint="leave --in-place out")
    texts, found = read_texts(paths, limits=Limits())
    problems = [str(problem) for problem in found]
    converted: list[tuple[str, TextConversion]] = []
    for file, text in texts:
        try:
            conversion = convert_text(text, file=file)
        except ManifestError as error:
            problems += map(str, error.problems)
            continue
        problems += [f"{file}: {problem}" for one in conversion.documents for problem in object_problems(one.document)]
        converted.append((file, conversion))
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return 1
    for file, conversion in converted:
        _report_changes(file, conversion)
        if in_place and conversion.changes:
            write_atomic(Path(file), conversion.text.encode(), mode=Path(file).stat().st_mode & 0o777)
    if not in_place:
        print("\n---\n".join(conversion.text.rstrip("\n") for _, conversion in converted))
    return 0


def _report_changes(file: str, conversion: TextConversion) -> None:
    for change in conversion.changes:
        print(f"{file}: {change.describe()}", file=sys.stderr)
    if not conversion.keeps_comments:
        print(f"{file}: written without its comments, since anchors or aliases cannot be edited", file=sys.stderr)


def object_problems(document: Any) -> Iterator[str]:
    """Yields the problems of a converted object; objects of other kinds have none."""
    if not isinstance(document, Mapping):
        return
    if document.get("kind") == "List":
        for item in document.get("items") or ():
            yield from object_problems(item)
    elif document.get("apiVersion") == API_VERSION:
        try:
            read_object(document)
        except BadInput as error:
            yield error.message
