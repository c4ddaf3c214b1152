"""The declaration of one limit: a dataclass field with its default and the reason."""

from dataclasses import field
from typing import Any


def limit(value: int | float, why: str) -> Any:
    return field(default=value, metadata={"why": why})
