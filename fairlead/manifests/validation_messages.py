"""Translates pydantic validation errors into problems with line, field, message and fix.

Pydantic's messages are about Python types. The messages here are about the text in the file.
"""

import re
from collections.abc import Iterator
from enum import Enum
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fairlead.api.strict_model import StrictModel, field_names
from fairlead.api.v1alpha1 import ModelDeployment
from fairlead.errors import FileProblem
from fairlead.manifests.foreign_words import own_words
from fairlead.manifests.yaml_nodes import YamlNode, format_path, format_value, node_from_value
from fairlead.names import closest_matches, suggest_fix

FieldPath = tuple[str | int, ...]

_EXPECTED_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping (fields with values)",
    "model_type": "a mapping (fields with values)",
}
_BOUND_ERRORS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


_ABSENT = object()
MAX_PROBLEMS = 1_000
"""Problems reported for one document; the rest are counted. That many errors have one cause."""


def validation_problems(
    error: ValidationError, model: type[BaseModel], node: YamlNode, file: str
) -> Iterator[FileProblem]:
    """Yields the errors as FileProblems, in the order of the file.

    After `MAX_PROBLEMS`, one last problem has the number of the others.

    node: the document that was validated as `model`.
    """
    errors = sorted(error.errors(include_url=False), key=lambda detail: node.locate(_error_path(detail)).line)
    for detail in errors[:MAX_PROBLEMS]:
        yield _to_problem(detail, model, node, file)
    if len(errors) > MAX_PROBLEMS:
        line = node.locate(_error_path(errors[MAX_PROBLEMS])).line
        yield FileProblem(
            file, line, "(document)", f"there are {len(errors) - MAX_PROBLEMS:,} more problems", "fix those above first"
        )


def check_remainder(
    error: ValidationError, model: type[BaseModel], node: YamlNode, file: str
) -> tuple[BaseModel | None, list[FileProblem]]:
    """Returns the object without the fields that are wrong, and the problems that they hid.

    Rules across fields are only checked once each field is right by itself. Without this, a file
    would have to be corrected in several rounds. A rule about a field that was left out is not
    checked. None if the remainder is no whole object.
    """
    value, emptied, first = node.to_python(), set[FieldPath](), error.errors(include_url=False)
    for detail in first:
        path = _error_path(detail)
        if detail["type"] in ("missing", "fairlead"):
            emptied.add(path[:-1])
        elif not _remove(value, path):
            return None, []
        elif detail["type"] != "extra_forbidden" or _is_misspelt(model, path):
            emptied.add(path[:-1])
    try:
        return model.model_validate(value, by_alias=True, by_name=False), []
    except ValidationError as second:
        details = [detail for detail in second.errors(include_url=False) if detail["type"] == "fairlead"]
    known = {(detail["loc"], detail["msg"]) for detail in first}
    hidden = [
        detail
        for detail in details
        if (detail["loc"], detail["msg"]) not in known
        and not any(path[: len(detail["loc"])] == detail["loc"] for path in emptied)
    ]
    return None, [_to_problem(detail, model, node, file) for detail in hidden]


def _is_misspelt(root: type[BaseModel], path: FieldPath) -> bool:
    """Whether an unknown field resembles one that it may stand for."""
    model, _ = field_at(root, path)
    name = str(path[-1])
    is_own = root is ModelDeployment and own_words(name) is not None
    return model is not None and not is_own and bool(closest_matches(name, field_names(model), count=1))


def _remove(value: Any, path: FieldPath) -> bool:
    """Removes the field at a path from a document. Returns whether there was one."""
    try:
        for step in path[:-1]:
            value = value[step]
    except (LookupError, TypeError):
        return False
    return isinstance(value, dict) and value.pop(path[-1], _ABSENT) is not _ABSENT


def describe_problems(error: ValidationError, model: type[StrictModel], value: Any, *, most: int) -> str:
    """Returns the problems of a value that was not read from a file, as one line of text.

    most: maximum number of problems.
    """
    found = list(validation_problems(error, model, node_from_value(value or {}), ""))
    shown = found[:most]
    lines = [f"{one.field}: {one.message}" + (f" ({one.fix})" if one.fix else "") for one in shown]
    return "; ".join(lines) + (f"; and {len(found) - len(shown)} more" if len(found) > len(shown) else "")


def _error_path(item: ErrorDetails) -> FieldPath:
    return (*item["loc"], *item.get("ctx", {}).get("at", ()))


def _to_problem(item: ErrorDetails, root: type[BaseModel], node: YamlNode, file: str) -> FileProblem:
    path = _error_path(item)
    model, info = field_at(root, path)
    if item["type"] == "extra_forbidden":
        message, fix = _unknown_field(root, model, str(path[-1]))
    else:
        message, fix = _message_and_fix(item, path, info)
    return FileProblem(file, node.locate(path).line, format_path(path), message, fix)


def _unknown_field(root: type[BaseModel], model: type[BaseModel] | None, name: str) -> tuple[str, str]:
    if model is None:
        return "unknown field", "remove it"
    if issubclass(model, StrictModel) and name in model.planned:
        return "this field is planned, but nothing in this release honours it", "remove it for now"
    if issubclass(model, StrictModel) and name in model.misplaced:
        return "unknown field", f"write it as {model.misplaced[name]}"
    own = own_words(name) if root is ModelDeployment else None
    if own is not None:
        return "unknown field", f"write it as {own}"
    known = field_names(model)
    return "unknown field", suggest_fix(name, known, f"remove it; known here: {', '.join(known)}")


def _message_and_fix(item: ErrorDetails, path: FieldPath, info: FieldInfo | None) -> tuple[str, str]:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    named = bool(path) and isinstance(path[-1], str)
    example = f"for example `{path[-1]}: {info.examples[0]}`" if named and info is not None and info.examples else ""
    if kind == "fairlead":
        return str(context["message"]), str(context["fix"])
    if kind == "missing":
        return "is missing", f"add it, {example}" if example else "add it"
    if kind in _EXPECTED_TYPES:
        return _wrong_type(kind, value, example)
    if kind in _BOUND_ERRORS:
        words, key = _BOUND_ERRORS[kind]
        bound = f"{words} {context[key]:g}"
        percent = (kind, context[key]) == ("less_than_equal", 1) and 1 < value <= 100
        fix = f"write {value / 100:g} for {value:g} %" if percent else f"write a number that is {bound}"
        return f"must be {bound}, not {format_value(value)}", fix
    if kind in ("enum", "literal_error"):
        allowed = _allowed_values(info, context)
        fix = suggest_fix(value, allowed, "write one of them")
        return f"must be one of {', '.join(allowed)}, not {format_value(value)}", fix
    if kind in ("too_short", "string_too_short"):
        return "must not be empty", f"fill it, {example}" if example else "fill it or leave it out"
    if kind in ("too_long", "string_too_long"):
        return f"is longer than {context['max_length']}", "shorten it"
    if kind == "string_pattern_mismatch":
        return f"{format_value(value)} has the wrong form", f"write it {example}" if example else str(
            context["pattern"]
        )
    if kind == "finite_number":
        return f"must be a finite number, not {format_value(value)}", "write a plain number"
    return item["msg"], example


def _wrong_type(kind: str, value: Any, example: str) -> tuple[str, str]:
    message = f"must be {_EXPECTED_TYPES[kind]}, not {_describe_value(value)}"
    if kind == "string_type" and not isinstance(value, dict | list):
        return message, "put it in quotes"
    if isinstance(value, str) and kind in ("int_type", "float_type", "bool_type") and _is_bare_scalar(value):
        return message, "write it without quotes"
    if kind == "model_type" and isinstance(value, int) and not isinstance(value, bool):
        example = re.sub(r"\d+", str(value), example)  # `replicas: 3` → `replicas: {min: 3}`
    if not isinstance(value, dict | list) and kind in ("int_type", "int_from_float", "float_type", "bool_type"):
        return message, f"write {_EXPECTED_TYPES[kind]}"
    return message, f"write it {example}" if example else "change its form"


def _is_bare_scalar(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("true", "false")
    return True


def _describe_value(value: Any) -> str:
    """Returns words for a value in a message: for a mapping or a list, its type alone."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    return f"the text {format_value(value)}" if isinstance(value, str) else f"the number {format_value(value)}"


def _allowed_values(info: FieldInfo | None, context: dict[str, Any]) -> list[str]:
    for part in _annotation_parts(info.annotation if info is not None else None):
        if isinstance(part, type) and issubclass(part, Enum):
            return [str(member.value) for member in part]
    return [text.strip("' ") for text in str(context.get("expected", "")).replace(" or ", ",").split(",")]


def _annotation_parts(annotation: Any) -> Iterator[Any]:
    """Yields an annotation and its parts: `list[Pool] | None` → itself, `list[Pool]`, `Pool`,
    `NoneType`.
    """
    yield annotation
    if get_origin(annotation) is not None:
        for part in get_args(annotation):
            yield from _annotation_parts(part)


def field_at(root: type[BaseModel], path: FieldPath) -> tuple[type[BaseModel] | None, FieldInfo | None]:
    """Returns the model that contains the last step of `path`, and the field of that step, if
    known.
    """
    model: type[BaseModel] | None = root
    info: FieldInfo | None = None
    for index, step in enumerate(path):
        if isinstance(step, int):
            continue
        if model is None:
            return None, None
        info = next((item for name, item in model.model_fields.items() if step in (item.alias, name)), None)
        if index == len(path) - 1:
            return model, info
        model = _nested_model(info)
    return model, info


def _nested_model(info: FieldInfo | None) -> type[BaseModel] | None:
    for part in _annotation_parts(info.annotation if info is not None else None):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None
