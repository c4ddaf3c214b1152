"""Conversion of YAML text, in place: comments, order and layout of a file stay.

PyYAML has the position of each key and value, and cannot write comments. Each change is therefore
an edit of the text. A text that would not read back as the converted objects is dumped without its
comments. This happens when changes touch anchors, aliases or merge keys.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from fairlead.errors import ManifestError
from fairlead.limits import Limits
from fairlead.manifests.convert import Change, Conversion, FieldPath, convert_document
from fairlead.manifests.yaml_nodes import YamlNode, parse_documents

_Entry = tuple[yaml.Node, yaml.Node]
_Edit = tuple[int, int, str]


class _CannotEdit(Exception):
    """Raised if a text has a form that cannot be edited in place."""


@dataclass(frozen=True, slots=True)
class TextConversion:
    """The converted text of a file.

    keeps_comments: False when the text was dumped without its comments.
    """

    text: str
    documents: tuple[Conversion, ...]
    keeps_comments: bool = True

    @property
    def changes(self) -> tuple[Change, ...]:
        """The changes of all documents."""
        return tuple(change for document in self.documents for change in document.changes)


def convert_text(text: str, *, file: str, limits: Limits | None = None) -> TextConversion:
    """Returns the text with the fields and values of release 0.1 replaced by those of this release.

    Raises ManifestError if the text is not valid YAML.
    """
    limits = limits or Limits()
    nodes = parse_documents(text, file=file, limits=limits)
    converted = tuple(_convert_node(node) for node in nodes)
    if not any(one.changes for one in converted):
        return TextConversion(text, converted)
    wanted = [one.document for one in converted]
    try:
        edited = _edit(text, converted)
        read = [node.to_python() for node in parse_documents(edited, file=file, limits=limits)]
    except (_CannotEdit, ManifestError, yaml.YAMLError):
        read, edited = None, ""
    if read == wanted:
        return TextConversion(edited, converted)
    return TextConversion(yaml.safe_dump_all(wanted, sort_keys=False), converted, keeps_comments=False)


def _convert_node(node: YamlNode) -> Conversion:
    value = node.to_python()
    return convert_document(value) if isinstance(value, dict) else Conversion(value)


def _edit(text: str, conversions: tuple[Conversion, ...]) -> str:
    roots = [root for root in yaml.compose_all(text, Loader=yaml.SafeLoader) if not _is_empty(root)]
    if len(roots) != len(conversions):
        raise _CannotEdit
    edits = [
        edit
        for root, conversion in zip(roots, conversions, strict=True)
        for change in conversion.changes
        for edit in _TextEditor(text, root).edits_for(change)
    ]
    for start, end, replacement in sorted(edits, reverse=True):
        text = text[:start] + replacement + text[end:]
    return text


def _is_empty(root: yaml.Node | None) -> bool:
    return root is None or root.tag == "tag:yaml.org,2002:null"


class _TextEditor:
    """The edits that changes make to the text of one document."""

    def __init__(self, text: str, root: yaml.Node) -> None:
        self._text = text
        self._root = root

    def edits_for(self, change: Change) -> Iterator[_Edit]:
        """Yields the edits for a change, as (start, end, replacement) in the unedited text."""
        holder = self._node(change.path[:-1])
        key, value = _entry(holder, change.path[-1])
        if change.children is not None:
            yield from self._unfold(holder, (key, value), change.children)
        elif change.parent is not None:
            yield from self._move(change, holder, (key, value))
        else:
            if change.key is not None:
                yield (*_span(key), self._format(change.key, key))
            if change.value is not None:
                yield (*_span(value), self._format(change.value[0], key))

    def _node(self, path: FieldPath) -> yaml.Node:
        node = self._root
        for step in path:
            node = node.value[step] if isinstance(step, int) else _entry(node, step)[1]
        return node

    def _format(self, value: Any, key: yaml.Node) -> str:
        """Returns a value on one line; as JSON where the file writes its keys in quotes."""
        if self._text.startswith('"', key.start_mark.index) or (isinstance(value, str) and value.endswith("%")):
            return json.dumps(value, ensure_ascii=False)
        dumped: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
        return dumped.removesuffix("\n").removesuffix("\n...")

    def _source(self, node: yaml.Node) -> str:
        start, end = _span(node)
        return self._text[start:end]

    def _unfold(self, holder: yaml.Node, entry: _Entry, names: tuple[tuple[str, str], ...]) -> Iterator[_Edit]:
        """Yields the edits that move the entries of a mapping up to its parent."""
        key, value = entry
        if not names:
            yield self._deletion(holder, entry)
            return
        indent = "\n" + " " * key.start_mark.column
        if _is_flow(value):
            separator = ", " if _is_flow(holder) else indent
            parts = [f"{self._format(new, key)}: {self._source(_entry(value, old)[1])}" for old, new in names]
            yield key.start_mark.index, _span(value)[1], separator.join(parts)
            return
        for number, (old, new) in enumerate(names):
            child = _entry(value, old)[0]
            start, end = _span(child)
            if number == 0:
                comments = re.findall("#.*", self._text[key.end_mark.index : start])
                before = "".join(comment + indent for comment in comments)
                yield key.start_mark.index, end, before + new
            else:
                line_start = self._text.rindex("\n", 0, start)
                yield line_start, end, indent + new

    def _move(self, change: Change, holder: yaml.Node, entry: _Entry) -> Iterator[_Edit]:
        assert change.parent is not None
        assert change.value is not None
        target = self._node(change.parent)
        if not isinstance(target, yaml.MappingNode) or not target.value:
            raise _CannotEdit
        if len(holder.value) == 1:
            outer = self._node(change.path[:-2])
            yield self._deletion(outer, _entry(outer, change.path[-2]))
        else:
            yield self._deletion(holder, entry)
        last_key = target.value[-1][0]
        field = f"{self._format(change.key, last_key)}: {self._format(change.value[0], last_key)}"
        end = _content_end(target.value[-1][1])
        if _is_flow(target):
            yield end, end, f", {field}"
            return
        comment = re.match(r"[ \t]*(#.*)?", self._text[end:])
        end += comment.end() if comment is not None else 0
        yield end, end, "\n" + " " * last_key.start_mark.column + field + self._trailing_comment(entry[1])

    def _trailing_comment(self, value: yaml.Node) -> str:
        if not isinstance(value, yaml.ScalarNode):
            return ""
        found = re.match(r"[ \t]+#.*", self._text[_span(value)[1] :])
        return found[0].rstrip() if found is not None else ""

    def _deletion(self, holder: yaml.Node, entry: _Entry) -> _Edit:
        key, value = entry
        number, end = holder.value.index(entry), _content_end(value)
        if _is_flow(holder):
            if number + 1 < len(holder.value):
                return key.start_mark.index, holder.value[number + 1][0].start_mark.index, ""
            if number == 0:
                return key.start_mark.index, end, ""
            return _content_end(holder.value[number - 1][1]), end, ""
        line_start = self._text.rfind("\n", 0, key.start_mark.index) + 1
        if self._text[line_start : key.start_mark.index].strip():  # the first field of an item of a list
            if number + 1 == len(holder.value):
                raise _CannotEdit
            return key.start_mark.index, holder.value[number + 1][0].start_mark.index, ""
        line_end = self._text.find("\n", end)
        return line_start, len(self._text) if line_end < 0 else line_end + 1, ""


def _entry(holder: yaml.Node, name: str | int) -> _Entry:
    if not isinstance(holder, yaml.MappingNode):
        raise _CannotEdit
    for key, value in holder.value:
        if isinstance(key, yaml.ScalarNode) and key.value == name:
            return key, value
    raise _CannotEdit


def _span(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.index, node.end_mark.index


def _is_flow(node: yaml.Node) -> bool:
    return isinstance(node, yaml.CollectionNode) and bool(node.flow_style)


def _content_end(node: yaml.Node) -> int:
    """Returns the index after the last character of a value, without the comments that follow."""
    if isinstance(node, yaml.CollectionNode) and not _is_flow(node) and node.value:
        last = node.value[-1]
        return _content_end(last[1] if isinstance(last, tuple) else last)
    end: int = node.end_mark.index
    return end
