"""YAML text → nodes that remember their line. Nothing here builds an object, runs a tag or believes a size.

The parser's event stream is read with a stack of our own, so that nesting, aliases ("billion laughs"), duplicate keys and
tags are refused by a rule and never by the interpreter's recursion limit. Plain scalars mean what they mean to kubectl
(``yes`` and ``on`` are true), except that dates and sexagesimal numbers stay text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import yaml

from fairlead.errors import ManifestError, Problem
from fairlead.limits import Limits

Scalar = str | int | float | bool | None

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOATS = {".inf", "+.inf", "-.inf", ".nan"}
_TRUE = {"true", "yes", "on"}
_FALSE = {"false", "no", "off"}
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq")}


@dataclass(frozen=True, slots=True)
class Node:
    """One value of a document. ``line`` counts from 1; for a value in a mapping it is the line of its key.

    ``size`` counts this value and all below it, aliases expanded.
    """

    value: "Scalar | dict[str, Node] | list[Node]"
    line: int
    size: int = 1

    def plain(self) -> Any:
        """The value as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def at(self, path: tuple[str | int, ...]) -> "Node":
        """The node at ``path``, or the deepest one on the way to it that exists: where a finding points."""
        node = self
        for step in path:
            value = node.value
            if isinstance(value, dict) and isinstance(step, str) and step in value:
                node = value[step]
                continue
            if isinstance(value, list) and isinstance(step, int) and step < len(value):
                node = value[step]
                continue
            break
        return node


def node_of(value: Any) -> Node:
    """A value that was read elsewhere, as nodes that all say line 1."""
    if isinstance(value, dict):
        return Node({str(key): node_of(below) for key, below in value.items()}, 1)
    if isinstance(value, list):
        return Node([node_of(below) for below in value], 1)
    return Node(value, 1)


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not been read yet."""

    line: int
    anchor: str | None
    entries: dict[str, Node] | list[Node]
    key: str | None = None
    key_line: int = 0
    size: int = 1
    lines: dict[str, int] = field(default_factory=dict)


def decode(raw: bytes, *, file: str, limits: Limits) -> str:
    """Bytes of a file → text without a byte-order mark. Raises ManifestError: too long, or not UTF-8."""
    if len(raw) > limits.fleet_file_bytes:
        raise _error(file, 1, f"the file has {len(raw):,} bytes, more than {limits.fleet_file_bytes:,}", "split it")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        fix = "save the file as UTF-8"
        raise _error(file, line, f"byte {error.start + 1} is not UTF-8 text", fix) from error


def documents(text: str, *, file: str, limits: Limits) -> list[Node]:
    """Every non-empty document of ``text``. Raises ManifestError with the one place where reading had to stop."""
    if len(text) > limits.fleet_file_bytes:
        raise _error(file, 1, f"the text is longer than {limits.fleet_file_bytes:,} characters", "split the file")
    try:
        return list(_Composer(file, limits).run(text))
    except ManifestError as error:
        raise _or_template(text, error) from error
    except yaml.MarkedYAMLError as error:
        raise _or_template(text, _syntax(text, file, error)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        fix = "remove the control character"
        raise _error(file, line, "a character that YAML does not allow in a file", fix) from error


class _Composer:
    """Builds nodes from parser events; one use per text."""

    def __init__(self, file: str, limits: Limits) -> None:
        self._file = file
        self._limits = limits
        self._stack: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._root: Node | None = None
        self._total = 0

    def run(self, text: str) -> Iterator[Node]:
        """The documents, one by one."""
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors, self._root = {}, None
            elif isinstance(event, yaml.DocumentEndEvent):
                if self._root is not None and self._root.value is not None:
                    yield self._root
            elif isinstance(event, yaml.NodeEvent):
                self._begin(event, event.start_mark.line + 1 if event.start_mark else 0)
            elif isinstance(event, yaml.CollectionEndEvent):
                opened = self._stack.pop()
                self._place(Node(opened.entries, opened.line, opened.size), opened.anchor, new=1)

    def _begin(self, event: yaml.NodeEvent, line: int) -> None:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise self._refuse(line, f"*{event.anchor} names no anchor above it", "write the value out")
            known = self._anchors[event.anchor]
            self._place(Node(known.value, line, known.size), None, new=known.size)
            return
        tag = getattr(event, "tag", None)
        if tag not in (None, "!") and tag not in _PLAIN_TAGS:
            short = str(tag).replace("tag:yaml.org,2002:", "!!")
            raise self._refuse(line, f"the tag {shown(short)} is not allowed", "remove the tag")
        if isinstance(event, yaml.ScalarEvent):
            plain = event.implicit[0]
            node = Node(resolve(event.value) if plain else event.value, line)
            self._place(node, event.anchor, new=1, text=event.value)
            return
        if len(self._stack) >= self._limits.json_depth:
            raise self._refuse(line, f"nested deeper than {self._limits.json_depth} levels", "flatten the file")
        self._check_key(line)
        entries: dict[str, Node] | list[Node] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._stack.append(_Open(line, event.anchor, entries))

    def _check_key(self, line: int) -> None:
        """A mapping or list may not stand where a key is expected."""
        if self._stack and isinstance(self._stack[-1].entries, dict) and self._stack[-1].key is None:
            raise self._refuse(line, "a key must be text", "write `key: value`")

    def _place(self, node: Node, anchor: str | None, *, new: int, text: str | None = None) -> None:
        """Put a finished node into what is open; ``text`` is a scalar as written, which is what keys are made of."""
        self._total += new
        if self._total > self._limits.yaml_nodes:
            message = f"more than {self._limits.yaml_nodes:,} values once aliases are expanded"
            raise self._refuse(node.line, message, "split the file; write repeated parts out once")
        if not self._stack:
            self._root = node
        elif isinstance(entries := self._stack[-1].entries, list):
            entries.append(node)
            self._stack[-1].size += node.size
        elif self._stack[-1].key is None:
            self._key(node, text)
        else:
            opened = self._stack[-1]
            entries[str(opened.key)] = Node(node.value, opened.key_line, node.size)
            opened.key, opened.size = None, opened.size + node.size
        if anchor is not None:
            self._anchors[anchor] = node

    def _key(self, node: Node, text: str | None) -> None:
        opened = self._stack[-1]
        key = text if text is not None else node.value
        if not isinstance(key, str):
            raise self._refuse(node.line, "a key must be text", "write `key: value`")
        if key in opened.lines:
            message = f"the key {shown(key)} is already given on line {opened.lines[key]}"
            raise self._refuse(node.line, message, "keep one of the two", path=(*self._path(), key))
        opened.key, opened.key_line = key, node.line
        opened.lines[key] = node.line

    def _path(self) -> tuple[str | int, ...]:
        """Where the innermost open collection stands in the document."""
        steps: list[str | int] = []
        for outer, _inner in pairwise(self._stack):
            steps.append(len(outer.entries) if isinstance(outer.entries, list) else str(outer.key))
        return tuple(steps)

    def _refuse(self, line: int, message: str, fix: str, path: tuple[str | int, ...] | None = None) -> ManifestError:
        if path is None:
            key = self._stack[-1].key if self._stack else None
            path = self._path() if key is None else (*self._path(), key)
        where = dotted(path)
        return ManifestError((Problem(self._file, line, where, message, fix),))


def resolve(text: str) -> Scalar:
    """What a plain scalar means."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    folded = text.lower()
    if folded in _TRUE:
        return True
    if folded in _FALSE:
        return False
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(folded.replace(".", "")) if folded in _SPECIAL_FLOATS else text


def dotted(path: tuple[str | int, ...]) -> str:
    """``("pools", 0, "name")`` → ``pools[0].name``; the empty path is the document itself."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text[:117] + "..." if len(text) > 120 else text or "(document)"


def shown(value: object) -> str:
    """A value of a file for a message: quoted, one line, not long, no control characters."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f'"{text}"' if isinstance(value, str) else text


def _error(file: str, line: int, message: str, fix: str) -> ManifestError:
    return ManifestError((Problem(file, line, "(file)", message, fix),))


def _or_template(text: str, error: ManifestError) -> ManifestError:
    """The error, or what it really is where its line still has braces of a template in it."""
    (problem,) = error.problems
    line = text.splitlines()[problem.line - 1 : problem.line]
    if not line or "{{" not in line[0]:
        return error
    message, fix = "a template that has not been filled in", "render it first, for example with `helm template`"
    return _error(problem.file, problem.line, message, fix)


def _syntax(text: str, file: str, error: yaml.MarkedYAMLError) -> ManifestError:
    """A parser's error in words that help; a tab is by far the commonest cause."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    lines = text.split("\n", line)
    near = lines[line - 1] if line <= len(lines) else ""
    if "\t" in near[: len(near) - len(near.lstrip())]:
        return _error(file, line, "a tab in the indentation; YAML is indented with spaces", "replace the tab by spaces")
    what = error.problem or "it cannot be read"
    context = f" ({error.context})" if error.context else ""
    return _error(
        file, line, f"not YAML: {what}{context}", "check indentation, colons and quotes on and above this line"
    )
