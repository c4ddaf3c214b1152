"""YAML files of tests, read by libyaml, which is ten times as fast as PyYAML's own parser."""

from collections.abc import Iterator
from typing import Any

import yaml

from fairlead.manifests.yaml_nodes import SAFE_LOADER


def load_document(text: str) -> Any:
    return yaml.load(text, Loader=SAFE_LOADER)


def load_documents(text: str) -> Iterator[Any]:
    yield from yaml.load_all(text, Loader=SAFE_LOADER)
