"""Sample values for msgspec structs, made from their field types alone."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect as types

MAX_DEPTH = 6


def struct_classes(packages: tuple[str, ...]) -> Iterator[type[msgspec.Struct]]:
    """Yields each struct class of the packages in the module that defines it."""
    for package in packages:
        root = importlib.import_module(package)
        for found in pkgutil.walk_packages(root.__path__, f"{package}."):
            if found.name.endswith("__main__"):
                continue
            module = importlib.import_module(found.name)
            for value in vars(module).values():
                if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == found.name:
                    yield value


def sample(kind: Any, number: int = 1, depth: int = 0) -> Any:
    """Returns a value of the type, the same for the same type and number."""
    match kind:
        case types.IntType():
            return number
        case types.FloatType():
            return number + 0.5
        case types.BoolType():
            return number % 2 == 1
        case types.StrType():
            return f"text-{number}"
        case types.BytesType() | types.ByteArrayType() | types.MemoryViewType():
            return bytes([number % 256])
        case types.NoneType():
            return None
        case types.EnumType(cls=cls):
            return next(iter(cls))
        case types.LiteralType(values=values):
            return values[0]
        case types.ListType(item_type=item) | types.VarTupleType(item_type=item):
            made = [] if depth > MAX_DEPTH else [sample(item, number, depth + 1)]
            return made if isinstance(kind, types.ListType) else tuple(made)
        case types.SetType(item_type=item) | types.FrozenSetType(item_type=item):
            return set() if depth > MAX_DEPTH else {sample(item, number, depth + 1)}
        case types.TupleType(item_types=items):
            return tuple(sample(item, number + place, depth + 1) for place, item in enumerate(items))
        case types.DictType(key_type=key, value_type=value):
            return {} if depth > MAX_DEPTH else {sample(key, number, depth + 1): sample(value, number, depth + 1)}
        case types.UnionType(types=options):
            plain = [option for option in options if not isinstance(option, types.NoneType)]
            return None if depth > MAX_DEPTH and len(plain) < len(options) else sample(plain[0], number, depth + 1)
        case types.StructType(cls=cls, fields=fields) | types.DataclassType(cls=cls, fields=fields):
            arguments = {field.name: sample(field.type, place, depth + 1) for place, field in enumerate(fields, 1)}
            return cls(**arguments)
        case types.RawType():
            return msgspec.Raw(b"null")
        case _:
            return f"any-{number}"


def encoded(cls: type[msgspec.Struct]) -> str:
    return msgspec.msgpack.encode(sample(types.type_info(cls))).hex()
