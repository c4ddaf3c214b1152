"""The ModelTenants of a YAML file, which gateways read with ``--tenants``.

Only the lists of keys are changed. The new file replaces the old one at once, so that no gateway
reads half of it. Two commands that change the same file run one after the other.

Entries that stay keep their text. A list in block style gets new entries on lines of their own; a
list in brackets is written on one line. The result is read again: if it does not say what it
should, nothing is returned.
"""

import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from fairlead.errors import BadInput
from fairlead.kube.resources import Manifest, name_of
from fairlead.limits import Limits
from fairlead.manifests.yaml_nodes import SAFE_LOADER, decode_file, parse_documents, resolve_scalar
from fairlead.tenants.documents import add_revocations
from fairlead_cli.tenants.store import PEPPER_VARIABLE, Entry, KeyEdit, find_tenant, keys_of

KIND: Final = "ModelTenant"
_PLAIN_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class _Edit:
    """A piece of the text, from one position to another, and what replaces it."""

    begin: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class _KeyList:
    """The list of keys in a text.

    name, node: the field's name and its value.
    values: the entries, as the loader of manifests reads them.
    """

    text: str
    name: yaml.Node
    node: yaml.Node
    values: Sequence[Entry]

    @property
    def items(self) -> Sequence[yaml.Node]:
        return self.node.value if isinstance(self.node, yaml.SequenceNode) else ()

    @property
    def newline(self) -> str:
        return _newline(self.text)


def replace_keys(text: str, tenant: str, entries: Sequence[Entry], *, file: str, limits: Limits | None = None) -> str:
    """Returns the text of a file in which a tenant has these keys, in any order.

    Raises BadInput if the text cannot be changed, and ManifestError if it is not YAML.
    """
    limits = limits or Limits()
    before = [node.to_python() for node in parse_documents(text, file=file, limits=limits)]
    old = next((value for value in before if is_tenant(value) and value["metadata"].get("name") == tenant), None)
    document = next(
        (node for node in yaml.compose_all(text, Loader=SAFE_LOADER) if _is_document_of(node, tenant)), None
    )
    if old is None or document is None:
        raise BadInput(f"{file} has no {KIND} {tenant}", field="TENANT")
    spec = _child(document, "spec")
    if spec is None or not isinstance(spec[1], yaml.MappingNode):
        raise _unchangeable(file, "spec", "write `spec: {}` first")
    found = _child(spec[1], "keys")
    if found is None and not entries:
        return text
    if found is None:
        edits = [_insert_list(text, spec[1], entries)]
    else:
        keys = _KeyList(text, *found, old["spec"].get("keys") or [])
        if _has_alias(keys):
            raise _unchangeable(file, "spec.keys", "write the list of keys out, without an anchor")
        edits = _edit_block(keys, entries) if _is_block(keys.node) else [_rewrite_list(keys, entries)]
    changed = text
    # From the end, so that the places of earlier edits stay right.
    for edit in sorted(edits, key=lambda edit: edit.begin, reverse=True):
        changed = changed[: edit.begin] + edit.text + changed[edit.end :]
    # Text was edited, to keep comments. What it means now must be what was asked for.
    after = [node.to_python() for node in parse_documents(changed, file=file, limits=limits)]
    expected = [_with_keys(value, entries) if value is old else value for value in before]
    if [_in_order(value) for value in after] != [_in_order(value) for value in expected]:
        raise _unchangeable(file, "spec.keys", "write the keys as a list of mappings, one a line")
    return changed


def is_tenant(value: Any) -> bool:
    return isinstance(value, dict) and value.get("kind") == KIND and isinstance(value.get("metadata"), dict)


def _edit_block(keys: _KeyList, entries: Sequence[Entry]) -> list[_Edit]:
    """Returns edits of a list in block style.

    A new entry takes the lines of a removed one; further new entries are appended.
    """
    text, wanted = keys.text, {_digest(entry): entry for entry in entries}
    present = {_digest(value) for value in keys.values}
    new = [entry for entry in entries if _digest(entry) not in present]
    if not entries:
        colon = text.index(":", keys.name.end_mark.index)
        end = _line_end(text, _content_end(keys.node))
        return [_Edit(colon, colon + 1, ": []"), _Edit(_line_end(text, colon), end, "")]
    edits = []
    for item, value in zip(keys.items, keys.values, strict=True):
        entry = wanted.get(_digest(value)) or (new.pop(0) if new else None)
        if entry is None:
            begin = text.rfind("\n", 0, text.rindex("-", 0, item.start_mark.index)) + 1
            edits.append(_Edit(begin, _line_end(text, _content_end(item), with_break=True), ""))
        elif entry != value:
            edits.append(_Edit(item.start_mark.index, _content_end(item), _flow(text, entry)))
    if new:
        dash = text.rindex("-", 0, keys.items[0].start_mark.index)
        indent = text[text.rfind("\n", 0, dash) + 1 : dash]
        end = _line_end(text, _content_end(keys.node))
        lines = "".join(f"{keys.newline}{indent}- {_flow(text, entry)}" for entry in new)
        edits.append(_Edit(end, end, lines))
    return edits


def _rewrite_list(keys: _KeyList, entries: Sequence[Entry]) -> _Edit:
    """Returns an edit that writes the whole list in brackets; entries that stay keep their text."""
    text, written = keys.text, {}
    for item, value in zip(keys.items, keys.values, strict=True):
        if value in entries:
            written[_digest(value)] = text[item.start_mark.index : _content_end(item)]
    items = ", ".join(written.get(_digest(entry)) or _flow(text, entry) for entry in entries)
    begin, end = keys.node.start_mark.index, keys.node.end_mark.index
    if begin == end:  # `keys:` with nothing after it
        begin = end = text.index(":", keys.name.end_mark.index) + 1
        return _Edit(begin, end, f" [{items}]")
    return _Edit(begin, end, f"[{items}]")


def _insert_list(text: str, spec: yaml.MappingNode, entries: Sequence[Entry]) -> _Edit:
    """Returns an edit that adds ``keys`` to a spec that has none."""
    if spec.flow_style or not spec.value:
        at = spec.start_mark.index + 1
        name, items = '"keys"' if _is_json(text) else "keys", ", ".join(_flow(text, entry) for entry in entries)
        return _Edit(at, at, f"{name}: [{items}]" + (", " if spec.value else ""))
    first = spec.value[0][0].start_mark.index
    indent, newline = text[text.rfind("\n", 0, first) + 1 : first], _newline(text)
    end = _line_end(text, _content_end(spec))
    lines = "".join(f"{newline}{indent}  - {_flow(text, entry)}" for entry in entries)
    return _Edit(end, end, f"{newline}{indent}keys:{lines}")


def _flow(text: str, entry: Entry) -> str:
    """Returns an entry on one line: as JSON in a JSON file, else with plain names."""
    if _is_json(text):
        return json.dumps(entry)
    return "{" + ", ".join(f"{name}: {_scalar(value)}" for name, value in entry.items()) + "}"


def _scalar(value: Any) -> str:
    is_plain = isinstance(value, str) and _PLAIN_NAME.fullmatch(value) and resolve_scalar(value) == value
    return str(value) if is_plain else json.dumps(value)


def _is_json(text: str) -> bool:
    return text.lstrip().startswith("{")


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _is_block(node: yaml.Node) -> bool:
    return isinstance(node, yaml.SequenceNode) and not node.flow_style and bool(node.value)


def _has_alias(keys: _KeyList) -> bool:
    """Returns whether the list, or an entry, is written elsewhere in the text."""
    begin = keys.name.end_mark.index
    if isinstance(keys.node, yaml.SequenceNode):
        begin, end = keys.node.start_mark.index, keys.node.end_mark.index
        if any(not begin <= item.start_mark.index < end for item in keys.items):
            return True
    return bool(
        keys.node.start_mark.index < keys.name.end_mark.index or "*" in keys.text[keys.name.end_mark.index : begin]
    )


def _content_end(node: yaml.Node) -> int:
    """Returns the position after the last character of a value.

    Why: the parser's end of a value in block style is where the next one begins.
    """
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    if isinstance(last, tuple):
        name, value = last
        return max(int(name.end_mark.index), _content_end(value))
    return _content_end(last)


def _line_end(text: str, position: int, *, with_break: bool = False) -> int:
    """Returns the end of the line at a position, before or after its line break."""
    found = text.find("\n", position)
    if found < 0:
        return len(text)
    if with_break:
        return found + 1
    return found - 1 if text[found - 1] == "\r" else found


def _child(node: yaml.Node, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((pair for pair in node.value if pair[0].value == key), None)


def _is_document_of(node: yaml.Node | None, tenant: str) -> bool:
    if node is None:
        return False
    kind, metadata = _child(node, "kind"), _child(node, "metadata")
    name = None if metadata is None else _child(metadata[1], "name")
    return kind is not None and kind[1].value == KIND and name is not None and name[1].value == tenant


def _digest(entry: Any) -> str:
    return str(entry.get("digest")) if isinstance(entry, dict) else ""


def _with_keys(value: Entry, entries: Sequence[Entry]) -> Entry:
    return {**value, "spec": {**value["spec"], "keys": [dict(entry) for entry in entries]}}


def _in_order(value: Any) -> Any:
    """Returns a document with its keys in the order of their digests."""
    if (
        not is_tenant(value)
        or not isinstance(value.get("spec"), dict)
        or not isinstance(value["spec"].get("keys"), list)
    ):
        return value
    return (
        _with_keys(value, sorted(value["spec"]["keys"], key=_digest))
        if all(isinstance(entry, dict) for entry in value["spec"]["keys"])
        else value
    )


def _unchangeable(file: str, field: str, fix: str) -> BadInput:
    return BadInput(f"{file}: {field} cannot be changed as it is written; nothing was written", field=field, hint=fix)


class FileTenantStore:
    """The ModelTenants of one file.

    revoked: a file to which the digests of revoked keys are added; None: there is none.
    environ: holds the pepper.
    """

    def __init__(self, path: Path, revoked: Path | None, environ: Mapping[str, str]) -> None:
        self.place = str(path)
        self._path = path.resolve()
        self._revoked = revoked
        self._environ = environ

    def pepper(self) -> str:
        """Returns the pepper of the environment. Raises BadInput without one."""
        pepper = self._environ.get(PEPPER_VARIABLE, "")
        if not pepper:
            hint = "set it to the value that the gateways have"
            raise BadInput(f"{PEPPER_VARIABLE} is not set", field=PEPPER_VARIABLE, hint=hint)
        return pepper

    def tenants(self) -> Sequence[Manifest]:
        return self._tenants_of(self._read())

    def tenant(self, name: str) -> Manifest:
        """Returns one ModelTenant. Raises BadInput if there is none of this name."""
        return find_tenant(self.tenants(), name, self.place)

    def edit_keys(self, name: str, edit: KeyEdit) -> None:
        """Changes the keys of a tenant, while no other command does."""
        with _locked(self._path.parent):
            text = self._read()
            entries = edit(keys_of(find_tenant(self._tenants_of(text), name, self.place)))
            _replace_file(self._path, replace_keys(text, name, entries, file=self.place))

    def add_revoked(self, entries: Sequence[Entry]) -> str | None:
        """Adds the digests to the file of revoked keys, if one was given."""
        if self._revoked is None:
            return None
        path = self._revoked.resolve()
        with _locked(path.parent):
            text = _read_text(path, self._revoked) if path.exists() else ""
            _replace_file(path, add_revocations(text, [str(entry["digest"]) for entry in entries]))
        return str(self._revoked)

    def _read(self) -> str:
        return _read_text(self._path, Path(self.place))

    def _tenants_of(self, text: str) -> Sequence[Manifest]:
        documents = [node.to_python() for node in parse_documents(text, file=self.place, limits=Limits())]
        tenants = [document for document in documents if is_tenant(document) and document["metadata"].get("name")]
        for tenant in tenants:
            _check_keys(tenant, self.place)
        return sorted(tenants, key=name_of)


def _check_keys(tenant: Manifest, place: str) -> None:
    spec = tenant.get("spec")
    entries = spec.get("keys") or [] if isinstance(spec, dict) else []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and entry.get("digest") for entry in entries):
        raise BadInput(
            f"{place}: spec.keys of the {KIND} {name_of(tenant)} is no list of keys",
            field="spec.keys",
            hint="each key is a mapping such as {name: prod, digest: ...}",
        )


def _read_text(path: Path, shown: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {shown}: {error.strerror}", field="--file", hint="name a file") from None
    return decode_file(raw, file=str(shown), limits=Limits())


def _replace_file(path: Path, text: str) -> None:
    """Replaces the content of a file at once; its mode stays."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o600)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Waits for other commands that change a file of the folder.

    Why the folder: the file itself is replaced, and a lock of it would be lost.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
