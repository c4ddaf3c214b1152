"""A pydantic ValidationError and the document it came from → findings with line, field, words and a fix.

Pydantic's own wording speaks of Python types; ours speaks of what is written in the file.
"""

import re
from collections.abc import Iterator
from enum import Enum
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fairlead.documents import Node, dotted, shown
from fairlead.errors import Problem
from fairlead.names import nearest
from fairlead.strict import Strict, field_names

Path = tuple[str | int, ...]

_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping (fields with values)",
    "model_type": "a mapping (fields with values)",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


MOST = 1_000
"""Findings worked out for one document; the rest are counted. A file that wrong has one cause."""


def findings(error: ValidationError, model: type[BaseModel], node: Node, file: str) -> Iterator[Problem]:
    """Every error as a Problem, in the order of the file. ``node`` is the document that ``model`` was read from."""
    errors = sorted(error.errors(include_url=False), key=lambda item: node.at(_path(item)).line)
    for item in errors[:MOST]:
        yield _problem(item, model, node, file)
    if len(errors) > MOST:
        line = node.at(_path(errors[MOST])).line
        yield Problem(file, line, "(document)", f"{len(errors) - MOST:,} more problems", "mend those above first")


def _path(item: ErrorDetails) -> Path:
    return (*item["loc"], *item.get("ctx", {}).get("at", ()))


def _problem(item: ErrorDetails, root: type[BaseModel], node: Node, file: str) -> Problem:
    path = _path(item)
    model, info = describe(root, path)
    if item["type"] == "extra_forbidden":
        message, fix = _unknown(model, str(path[-1]))
    else:
        message, fix = _words(item, path, info)
    return Problem(file, node.at(path).line, dotted(path), message, fix)


def _unknown(model: type[BaseModel] | None, name: str) -> tuple[str, str]:
    if model is None:
        return "unknown field", "remove it"
    if issubclass(model, Strict) and name in model.planned:
        return "this field is planned, but nothing in this release honours it", "remove it for now"
    known = field_names(model)
    close = nearest(name, known, count=1)
    fix = f"did you mean {close[0]}?" if close else f"remove it; known here: {', '.join(known)}"
    return "unknown field", fix


def _words(item: ErrorDetails, path: Path, info: FieldInfo | None) -> tuple[str, str]:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    named = bool(path) and isinstance(path[-1], str)
    example = f"for example `{path[-1]}: {info.examples[0]}`" if named and info is not None and info.examples else ""
    if kind == "fairlead":
        return str(context["message"]), str(context["fix"])
    if kind == "missing":
        return "is missing", f"add it, {example}" if example else "add it"
    if kind in _WANTED:
        return _wrong_type(kind, value, example)
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = f"{words} {context[key]:g}"
        percent = (kind, context[key]) == ("less_than_equal", 1) and 1 < value <= 100
        fix = f"write {value / 100:g} for {value:g} %" if percent else f"write a number that is {bound}"
        return f"must be {bound}, not {shown(value)}", fix
    if kind in ("enum", "literal_error"):
        allowed = _allowed(info, context)
        close = nearest(value, allowed, count=1) if isinstance(value, str) else []
        fix = f"did you mean {close[0]}?" if close else "write one of them"
        return f"must be one of {', '.join(allowed)}, not {shown(value)}", fix
    if kind in ("too_short", "string_too_short"):
        return "must not be empty", f"fill it, {example}" if example else "fill it or leave it out"
    if kind in ("too_long", "string_too_long"):
        return f"is longer than {context['max_length']}", "shorten it"
    if kind == "string_pattern_mismatch":
        return f"{shown(value)} has the wrong form", f"write it {example}" if example else str(context["pattern"])
    if kind == "finite_number":
        return f"must be a finite number, not {shown(value)}", "write a plain number"
    return item["msg"], example


def _wrong_type(kind: str, value: Any, example: str) -> tuple[str, str]:
    message = f"must be {_WANTED[kind]}, not {_named(value)}"
    if kind == "string_type" and not isinstance(value, dict | list):
        return message, "put it in quotes"
    if isinstance(value, str) and kind in ("int_type", "float_type", "bool_type") and _needs_no_quotes(value):
        return message, "write it without quotes"
    if kind == "model_type" and isinstance(value, int) and not isinstance(value, bool):
        example = re.sub(r"\d+", str(value), example)  # `replicas: 3` → `replicas: {min: 3}`
    if not isinstance(value, dict | list) and kind in ("int_type", "int_from_float", "float_type", "bool_type"):
        return message, f"write {_WANTED[kind]}"
    return message, f"write it {example}" if example else "change its form"


def _needs_no_quotes(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("true", "false")
    return True


def _named(value: Any) -> str:
    """A value with what it is, for people."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    return f"the text {shown(value)}" if isinstance(value, str) else f"the number {shown(value)}"


def _allowed(info: FieldInfo | None, context: dict[str, Any]) -> list[str]:
    for part in _parts(info.annotation if info is not None else None):
        if isinstance(part, type) and issubclass(part, Enum):
            return [str(member.value) for member in part]
    return [text.strip("' ") for text in str(context.get("expected", "")).replace(" or ", ",").split(",")]


def _parts(annotation: Any) -> Iterator[Any]:
    """An annotation and what it is made of: ``list[Pool] | None`` → itself, ``list[Pool]``, ``Pool``, ``NoneType``."""
    yield annotation
    if get_origin(annotation) is not None:
        for part in get_args(annotation):
            yield from _parts(part)


def describe(root: type[BaseModel], path: Path) -> tuple[type[BaseModel] | None, FieldInfo | None]:
    """The model that holds the last step of ``path``, and that step's field where it is a known one."""
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
        model = _submodel(info)
    return model, info


def _submodel(info: FieldInfo | None) -> type[BaseModel] | None:
    for part in _parts(info.annotation if info is not None else None):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None
