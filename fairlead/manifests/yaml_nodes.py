"""Parses YAML into nodes that keep their line numbers. It builds no objects and runs no tags.

The parser's event stream is processed with an explicit stack. Deep nesting, expanding aliases
("billion laughs"), duplicate keys and tags are therefore refused by a rule, not by the
interpreter's recursion limit. Plain scalars mean what they mean to kubectl (`yes` and `on` are
true, `007` and `0x1f` are numbers), except that dates stay text. `<<` merges mappings, and a List,
as `kubectl get -o yaml` writes it, stands for its items.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import yaml

from fairlead.errors import FileProblem, ManifestError
from fairlead.limits import Limits

YAML_NODES: Final = 500_000
"""Limit: values in a YAML file with aliases expanded; stops alias bombs."""

UNRENDERED_TEMPLATE = "the file is a template that has not been rendered"
"""Message of the problem of a file that is no YAML because it is a template."""

SAFE_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The parser of libyaml, which is ten times as fast as PyYAML's own, where PyYAML has it."""

Scalar = str | int | float | bool | None

_INTEGER = re.compile(r"([-+]?)(?:0([bBoOxX]?)([0-9a-fA-F]{1,64})|(0|[1-9][0-9]{0,18}))")
_NUMBER_STARTS: Final = "+-0123456789"
_TOO_GREAT: Final = 1 << 64
_BASES = {"b": 2, "o": 8, "x": 16, "": 8}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOATS = {".inf", "+.inf", "-.inf", ".nan"}
_TRUE = {"true", "yes", "on", "y"}
_FALSE = {"false", "no", "off", "n"}
_HELM_ACTION = re.compile(r"\{\{-?\s*(\.|\$|(?:if|range|with|define|template|include|end|toYaml|tpl)\b)")
_MERGE_KEY: Final = "<<"
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq")}


@dataclass(frozen=True, slots=True)
class YamlNode:
    """A value of a YAML document.

    line: starts at 1; for a value in a mapping, the line of its key.
    size: number of values in it, with aliases expanded.
    """

    value: "Scalar | dict[str, YamlNode] | list[YamlNode]"
    line: int
    size: int = 1

    def to_python(self) -> Any:
        """Returns the value as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.to_python() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.to_python() for node in self.value]
        return self.value

    def locate(self, path: tuple[str | int, ...]) -> "YamlNode":
        """Returns the node at `path`, or its deepest existing ancestor, for error positions."""
        current = self
        for step in path:
            value = current.value
            if isinstance(value, dict) and isinstance(step, str) and step in value:
                current = value[step]
                continue
            if isinstance(value, list) and isinstance(step, int) and step < len(value):
                current = value[step]
                continue
            break
        return current


def node_from_value(value: Any) -> YamlNode:
    """Returns a Python value, such as an object of the API server, as nodes. All have line 1."""
    if isinstance(value, dict):
        return YamlNode({str(key): node_from_value(item) for key, item in value.items()}, 1)
    if isinstance(value, list):
        return YamlNode([node_from_value(item) for item in value], 1)
    return YamlNode(value, 1)


@dataclass(slots=True)
class _OpenCollection:
    """A mapping or list whose end has not been read yet."""

    line: int
    anchor: str | None
    entries: dict[str, YamlNode] | list[YamlNode]
    key: str | None = None
    key_line: int = 0
    size: int = 1
    lines: dict[str, int] = field(default_factory=dict)


def decode_file(raw: bytes, *, file: str, limits: Limits) -> str:
    """Returns the bytes of a file as text, without a byte-order mark.

    Raises ManifestError if the file is too long or not UTF-8.
    """
    if len(raw) > limits.fleet_file_bytes:
        raise _manifest_error(
            file, 1, f"the file has {len(raw):,} bytes, more than {limits.fleet_file_bytes:,}", "split it"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        fix = "save the file as UTF-8"
        raise _manifest_error(file, line, f"byte {error.start + 1} is not UTF-8 text", fix) from error


def parse_documents(text: str, *, file: str, limits: Limits) -> list[YamlNode]:
    """Returns every non-empty document, and each item of a List as a document.

    Raises ManifestError with the place of a syntax error.
    """
    if len(text) > limits.fleet_file_bytes:
        raise _manifest_error(
            file, 1, f"the text is longer than {limits.fleet_file_bytes:,} characters", "split the file"
        )
    try:
        return [item for node in _Composer(file, limits).compose(text) for item in _list_items(node)]
    except ManifestError as error:
        raise _explain_template(text, error) from error
    except yaml.MarkedYAMLError as error:
        raise _explain_template(text, _syntax_error(text, file, error)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        fix = "remove the control character"
        raise _manifest_error(file, line, "the file contains a character that YAML does not allow", fix) from error


class _Composer:
    """A builder of nodes from parser events. One use per text."""

    def __init__(self, file: str, limits: Limits) -> None:
        self._file = file
        self._limits = limits
        self._stack: list[_OpenCollection] = []
        self._anchors: dict[str, YamlNode] = {}
        self._root: YamlNode | None = None
        self._node_count = 0

    def compose(self, text: str) -> Iterator[YamlNode]:
        """Yields the root nodes of the non-empty documents. Raises ManifestError."""
        for event in yaml.parse(text, Loader=SAFE_LOADER):
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors, self._root = {}, None
            elif isinstance(event, yaml.DocumentEndEvent):
                if self._root is not None and self._root.value is not None:
                    yield self._root
            elif isinstance(event, yaml.NodeEvent):
                self._on_node(event, event.start_mark.line + 1 if event.start_mark else 0)
            elif isinstance(event, yaml.CollectionEndEvent):
                collection = self._stack.pop()
                self._add(self._finish(collection), collection.anchor, new=1)

    def _finish(self, collection: _OpenCollection) -> YamlNode:
        """Returns the node of a collection, with what `<<` merges below its own keys."""
        entries = collection.entries
        if isinstance(entries, dict) and _MERGE_KEY in entries:
            merged = entries.pop(_MERGE_KEY)
            for source in merged.value if isinstance(merged.value, list) else [merged]:
                if not isinstance(source.value, dict):
                    raise self._error_at(merged.line, "<< merges mappings only", "name the anchor of a mapping")
                for key, node in source.value.items():
                    entries.setdefault(key, node)
        return YamlNode(entries, collection.line, collection.size)

    def _on_node(self, event: yaml.NodeEvent, line: int) -> None:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise self._error_at(line, f"*{event.anchor} names no anchor above it", "write the value out")
            target = self._anchors[event.anchor]
            self._add(YamlNode(target.value, line, target.size), None, new=target.size)
            return
        tag = getattr(event, "tag", None)
        if tag not in (None, "!") and tag not in _PLAIN_TAGS:
            short = str(tag).replace("tag:yaml.org,2002:", "!!")
            raise self._error_at(line, f"the tag {format_value(short)} is not allowed", "remove the tag")
        if isinstance(event, yaml.ScalarEvent):
            plain = event.implicit[0]
            node = YamlNode(resolve_scalar(event.value) if plain else event.value, line)
            self._add(node, event.anchor, new=1, text=event.value)
            return
        if len(self._stack) >= self._limits.json_depth:
            raise self._error_at(
                line, f"the file is nested deeper than {self._limits.json_depth} levels", "flatten the file"
            )
        self._check_key(line)
        entries: dict[str, YamlNode] | list[YamlNode] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._stack.append(_OpenCollection(line, event.anchor, entries))

    def _check_key(self, line: int) -> None:
        if self._stack and isinstance(self._stack[-1].entries, dict) and self._stack[-1].key is None:
            raise self._error_at(line, "a key must be text", "write `key: value`")

    def _add(self, node: YamlNode, anchor: str | None, *, new: int, text: str | None = None) -> None:
        """Adds a finished node to the open collection.

        new: number of values that the node adds to the total.
        text: a scalar as written, which is used for keys.
        """
        self._node_count += new
        if self._node_count > YAML_NODES:
            message = f"the file has more than {YAML_NODES:,} values once aliases are expanded"
            raise self._error_at(node.line, message, "split the file, or use fewer aliases")
        if not self._stack:
            self._root = node
        elif isinstance(entries := self._stack[-1].entries, list):
            entries.append(node)
            self._stack[-1].size += node.size
        elif self._stack[-1].key is None:
            self._set_key(node, text)
        else:
            collection = self._stack[-1]
            entries[str(collection.key)] = YamlNode(node.value, collection.key_line, node.size)
            collection.key, collection.size = None, collection.size + node.size
        if anchor is not None:
            self._anchors[anchor] = node

    def _set_key(self, node: YamlNode, text: str | None) -> None:
        collection = self._stack[-1]
        key = text if text is not None else node.value
        if not isinstance(key, str):
            raise self._error_at(node.line, "a key must be text", "write `key: value`")
        if key in collection.lines:
            message = f"the key {format_value(key)} is already given on line {collection.lines[key]}"
            raise self._error_at(node.line, message, "keep one of the two", path=(*self._path(), key))
        collection.key, collection.key_line = key, node.line
        collection.lines[key] = node.line

    def _path(self) -> tuple[str | int, ...]:
        """Returns the path of the innermost open collection."""
        steps: list[str | int] = []
        for outer, _inner in pairwise(self._stack):
            steps.append(len(outer.entries) if isinstance(outer.entries, list) else str(outer.key))
        return tuple(steps)

    def _error_at(self, line: int, message: str, fix: str, path: tuple[str | int, ...] | None = None) -> ManifestError:
        if path is None:
            key = self._stack[-1].key if self._stack else None
            path = self._path() if key is None else (*self._path(), key)
        where = format_path(path)
        return ManifestError((FileProblem(self._file, line, where, message, fix),))


def resolve_scalar(text: str) -> Scalar:
    """Returns the value of a plain (unquoted) scalar, as kubectl reads it."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    folded = text.lower()
    if folded in _TRUE:
        return True
    if folded in _FALSE:
        return False
    plain = text.replace("_", "") if text[0] in _NUMBER_STARTS else text
    if (whole := _INTEGER.fullmatch(plain)) is not None:
        sign, base, digits, decimal = whole.groups()
        try:
            number = int(f"{sign}{decimal or digits}", 10 if decimal else _BASES[base.lower()])
        except ValueError:
            number = _TOO_GREAT  # such as 08, which has no octal digits
        if abs(number) < _TOO_GREAT:
            return number
    if _FLOAT.fullmatch(plain):
        return float(plain)
    return float(folded.replace(".", "")) if folded in _SPECIAL_FLOATS else text


def _list_items(node: YamlNode) -> list[YamlNode]:
    """Returns the items of a Kubernetes List, also of one kind; for any other document, itself."""
    if not isinstance(node.value, dict) or "apiVersion" not in node.value:
        return [node]
    kind, items = (node.value[name].value if name in node.value else None for name in ("kind", "items"))
    if not isinstance(kind, str) or not kind.endswith("List") or not isinstance(items, list):
        return [node]
    return [inner for item in items if item.value is not None for inner in _list_items(item)]


def format_path(path: tuple[str | int, ...]) -> str:
    """Returns a path as text of at most 120 characters: `("pools", 0, "name")` → `pools[0].name`.

    Returns `(document)` for an empty path.
    """
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text[:117] + "..." if len(text) > 120 else text or "(document)"


def format_value(value: object) -> str:
    """Returns a value of a file for a message: on one line, without control characters.

    Text is quoted. Longer values are cut to 60 characters.
    """
    text = value if isinstance(value, str) else repr(value)
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f'"{text}"' if isinstance(value, str) else text


def _manifest_error(file: str, line: int, message: str, fix: str) -> ManifestError:
    return ManifestError((FileProblem(file, line, "(file)", message, fix),))


def _explain_template(text: str, error: ManifestError) -> ManifestError:
    """Returns `error`, or one that names the cause if the text is a template.

    It is one if the line of the error has its braces, or if any line has an action of Helm.
    """
    (problem,) = error.problems
    line = text.splitlines()[problem.line - 1 : problem.line]
    if not (line and "{{" in line[0]) and not _HELM_ACTION.search(text):
        return error
    fix = "render it first, for example with `helm template`"
    return _manifest_error(problem.file, problem.line, UNRENDERED_TEMPLATE, fix)


def _syntax_error(text: str, file: str, error: yaml.MarkedYAMLError) -> ManifestError:
    """Returns a ManifestError, with a fix, for an error of the YAML parser.

    A tab in the indentation is by far the most common cause.
    """
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    lines = text.split("\n", line)
    text_line = lines[line - 1] if line <= len(lines) else ""
    if "\t" in text_line[: len(text_line) - len(text_line.lstrip())]:
        return _manifest_error(
            file, line, "the indentation contains a tab; YAML is indented with spaces", "replace the tab by spaces"
        )
    what = error.problem or "it cannot be read"
    context = f" ({error.context})" if error.context else ""
    return _manifest_error(
        file, line, f"not YAML: {what}{context}", "check indentation, colons and quotes on and above this line"
    )
