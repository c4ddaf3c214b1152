"""YAML files of tests, read by libyaml, which is ten times as fast as PyYAML's own parser."""

from collections.abc import Iterator
from typing import Any

import yaml

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_document(text: str) -> Any:
    """Returns the only document of a text."""
    return yaml.load(text, Loader=_LOADER)


def load_documents(text: str) -> Iterator[Any]:
    """Yields the documents of a text."""
    yield from yaml.load_all(text, Loader=_LOADER)
