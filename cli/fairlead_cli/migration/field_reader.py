"""Reads foreign objects and records which of their fields were read.

Every field that a conversion does not read becomes a note, so that none is lost in silence.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from fairlead.errors import BadInput
from fairlead.manifests.yaml_nodes import format_path

FieldPath = tuple[str | int, ...]
TO_GATEWAY: Final = "point a route of your own at the Service fairlead-gateway, port 80"
WHOLE_OBJECT: Final = "(all)"
"""The field of a note about an object as a whole."""


class Outcome(StrEnum):
    """The outcome of a field.

    LEFT_OUT: an object or an entry that serves a model has no counterpart in the output.
    REQUIRED: the reason says what to do before the output is applied.
    """

    CHANGED = "changed"
    DROPPED = "dropped"
    LEFT_OUT = "left-out"
    REQUIRED = "required"


_VERBS: Final = {
    Outcome.CHANGED: "changed",
    Outcome.DROPPED: "not carried over",
    Outcome.LEFT_OUT: "not converted",
    Outcome.REQUIRED: "before you apply the output",
}


@dataclass(frozen=True, slots=True)
class Note:
    """A field that a conversion changed or did not carry over, and the reason.

    place: the file and the object, such as `model.yaml: Model llama`.
    """

    place: str
    field: str
    outcome: Outcome
    reason: str

    def describe(self) -> str:
        field_name = "" if self.field == WHOLE_OBJECT else f"{self.field}: "
        return f"{self.place}: {field_name}{_VERBS[self.outcome]}: {self.reason}"


@dataclass(slots=True)
class _Record:
    """The fields of a document that were read, and the notes about it."""

    place: str
    root: Mapping[str, Any]
    read: set[FieldPath] = field(default_factory=set)
    notes: list[Note] = field(default_factory=list)


class FieldReader:
    """A mapping of a foreign document. Readers of one document share their record."""

    def __init__(self, values: Mapping[str, Any], record: _Record, path: FieldPath = ()) -> None:
        self._values = values
        self._record = record
        self.path = path

    @classmethod
    def of_document(cls, document: Mapping[str, Any], file: str) -> "FieldReader":
        """Returns the reader of a whole document."""
        name = (document.get("metadata") or {}).get("name")
        kind = document.get("kind")
        subject = " ".join(str(word) for word in (kind, name) if word)
        return cls(document, _Record(f"{file}: {subject}" if subject else file, document))

    def with_document(self, document: Mapping[str, Any]) -> "FieldReader":
        self._record.root = document
        return FieldReader(document, self._record)

    @property
    def notes(self) -> list[Note]:
        return self._record.notes

    @property
    def place(self) -> str:
        return self._record.place

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def __bool__(self) -> bool:
        return bool(self._values)

    def names(self) -> list[str]:
        return list(self._values)

    def peek(self, name: str) -> Any:
        return self._values.get(name)

    def value(self, name: str, default: Any = None) -> Any:
        """Returns a copy of a field with all that is below it, and marks it as read."""
        self._record.read.add((*self.path, name))
        found = copy.deepcopy(self._values.get(name))
        return default if found is None else found

    def text(self, name: str) -> str:
        """Returns a field as text; empty when it is missing. Raises BadInput for a collection."""
        found = self._scalar(name, "text")
        return "" if found is None else str(found)

    def integer(self, name: str) -> int | None:
        """Returns a whole number, also if it is written as text. Raises BadInput for others."""
        found = self._scalar(name, "a whole number")
        if found is None:
            return None
        try:
            return int(found)
        except (ValueError, OverflowError) as error:
            raise self.error(name, f"{found!r} is not a whole number") from error

    def number(self, name: str, default: int = 1) -> int:
        """Returns a whole number; `default` when it is missing. Raises BadInput for others."""
        found = self.integer(name)
        return default if found is None else found

    def fields(self) -> dict[str, Any]:
        return {name: self.value(name) for name in self._values}

    def flag(self, name: str) -> bool:
        """Returns a boolean; False when it is missing. Raises BadInput for other values."""
        found = self.value(name, default=False)
        if not isinstance(found, bool):
            raise self.error(name, "is not true or false")
        return found

    def texts(self, name: str) -> list[str]:
        """Returns a list of texts; empty when it is missing. Raises BadInput for other values."""
        found = self.value(name, default=[])
        if not isinstance(found, list) or any(isinstance(item, dict | list) for item in found):
            raise self.error(name, "is not a list of texts")
        return [str(item) for item in found]

    def mapping(self, name: str) -> dict[str, Any]:
        """Returns a copy of a mapping; empty when it is missing. Raises BadInput for others."""
        found = self.value(name, default={})
        if not isinstance(found, dict):
            raise self.error(name, "is not a mapping")
        return dict(found)

    def section(self, name: str) -> "FieldReader":
        """Returns the reader of a mapping; an empty one when it is missing.

        Raises BadInput for other values.
        """
        found = self._values.get(name)
        if found is not None and not isinstance(found, dict):
            raise self.error(name, "is not a mapping")
        return FieldReader(found or {}, self._record, (*self.path, name))

    def entries(self, name: str) -> list["FieldReader"]:
        """Returns the readers of a list of mappings. Raises BadInput for other values."""
        found = self._values.get(name) or []
        if not isinstance(found, list) or any(not isinstance(item, dict) for item in found):
            raise self.error(name, "is not a list of mappings")
        return [FieldReader(item, self._record, (*self.path, name, index)) for index, item in enumerate(found)]

    def skip(self, *names: str) -> None:
        self._record.read.update((*self.path, name) for name in names)

    def drop(self, name: str, reason: str) -> None:
        """Marks a field as read, and notes that it was not carried over."""
        if name in self._values:
            self.value(name)
            self.note(name, reason, Outcome.DROPPED)

    def is_off(self) -> bool:
        """Returns whether `enabled` is not true, and notes then that nothing was carried over."""
        if self.flag("enabled"):
            return False
        if self:
            self.drop_all("it is off")
        return True

    def drop_all(self, reason: str) -> None:
        """Marks the whole mapping as read, and notes that it was not carried over."""
        self._record.read.add(self.path)
        self.skip(*self.names())
        self.note("", reason, Outcome.DROPPED)

    def note(self, name: str, reason: str, outcome: Outcome = Outcome.CHANGED) -> None:
        """Adds a note about a field of this mapping; an empty name stands for the mapping."""
        path = (*self.path, name) if name else self.path
        shown = format_path(path) if path else WHOLE_OBJECT
        found = Note(self._record.place, shown, outcome, reason)
        if found not in self._record.notes:
            self._record.notes.append(found)

    def error(self, name: str, message: str, hint: str | None = None) -> BadInput:
        return BadInput(message, field=f"{self.place}: {format_path((*self.path, name))}", hint=hint)

    def unread(self) -> Iterator[FieldPath]:
        entered = {path[:length] for path in self._record.read for length in range(len(path))}
        yield from self._unread(self._record.root, (), entered)

    def _unread(self, value: Any, path: FieldPath, entered: set[FieldPath]) -> Iterator[FieldPath]:
        if path in self._record.read or value in (None, [], {}, ""):
            return
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        children = list(items)
        if not children or (path and path not in entered):
            yield path
            return
        for key, child in children:
            yield from self._unread(child, (*path, key), entered)

    def _scalar(self, name: str, wanted: str) -> str | int | float | None:
        found = self.value(name)
        if found is None or (isinstance(found, str | int | float) and not isinstance(found, bool)):
            return found
        raise self.error(name, f"is not {wanted}")
