"""The types of the management API, which the gateway sends and the command line reads."""

import typing
from collections.abc import Iterator
from inspect import isclass

from msgspec import Struct

from fairlead import management_api


def _structs(kind: object) -> Iterator[type[Struct]]:
    """Yields a type if it is a struct, and the structs in it."""
    if isclass(kind) and issubclass(kind, Struct):
        yield kind
        for field in typing.get_type_hints(kind).values():
            yield from _structs(field)
    for part in typing.get_args(kind):
        yield from _structs(part)


def test_fields_are_sent_and_read_by_their_own_names() -> None:
    """A struct that inherits from one with other names keeps these, which no reader expects."""
    structs = {kind for answer in vars(management_api).values() for kind in _structs(answer)}
    assert len(structs) > 40
    assert [kind.__name__ for kind in structs if kind.__struct_fields__ != kind.__struct_encode_fields__] == []
