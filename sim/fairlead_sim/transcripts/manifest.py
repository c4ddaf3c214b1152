"""The manifest: what each recording is, and how equal the simulated engine must be to it.

Recordings are in the order of their replay, because state (cached, loaded, asleep) carries over.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from fairlead.errors import BadInput

EXACT = "exact"
SHAPE = "shape"
EXCLUDED = "excluded"
_MATCH_LEVELS = frozenset({EXACT, SHAPE, EXCLUDED})


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One recorded request and response.

    - hold: number of requests that are kept open until the recording named ``until`` is replayed.
    - abandon: a ``stream`` or ``plain`` request that is left in the middle before this one.
    """

    name: str
    engine: str
    match: str
    why: str = ""
    hold: int = 0
    until: str = ""
    abandon: str = ""
    times: int = 1


@dataclass(frozen=True, slots=True)
class ManifestScenario:
    """A file with a whole scenario, and the tests that cover it."""

    name: str
    summary: str
    tests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """All files; ``engines`` has the flags of each engine configuration."""

    engines: Mapping[str, tuple[str, ...]]
    entries: tuple[ManifestEntry, ...]
    scenarios: tuple[ManifestScenario, ...]

    def entries_for(self, engine: str) -> list[ManifestEntry]:
        """Returns the recordings to replay against one configuration, in order."""
        return [entry for entry in self.entries if entry.engine == engine and entry.match != EXCLUDED]


def load_manifest() -> Manifest:
    """Returns the manifest of this package. Raises BadInput with the entry's name."""
    text = resources.files(__package__).joinpath("manifest.yaml").read_text("utf-8")
    return parse_manifest(yaml.safe_load(text))


def parse_manifest(document: Mapping[str, Any]) -> Manifest:
    """Returns a manifest from its YAML document. Raises BadInput with the entry's name."""
    engines = {name: tuple(str(word) for word in words) for name, words in document["engines"].items()}
    entries = tuple(_parse_entry(name, fields, engines) for name, fields in document["recordings"].items())
    scenarios = tuple(
        ManifestScenario(name, fields["what"], tuple(fields["tests"])) for name, fields in document["scenarios"].items()
    )
    return Manifest(engines, entries, scenarios)


def _parse_entry(name: str, fields: Mapping[str, Any], engines: Mapping[str, Any]) -> ManifestEntry:
    try:
        entry = ManifestEntry(name, **fields)
    except TypeError as error:
        raise BadInput(f"{name}: {error}", field=f"recordings.{name}") from error
    if entry.match not in _MATCH_LEVELS:
        raise BadInput(
            f"{name}: match {entry.match!r} is unknown", field=f"recordings.{name}.match", hint="exact, shape, excluded"
        )
    if entry.engine not in engines:
        raise BadInput(f"{name}: no engine is called {entry.engine!r}", field=f"recordings.{name}.engine")
    if entry.match == EXCLUDED and not entry.why:
        raise BadInput(f"{name}: excluded without a reason", field=f"recordings.{name}.why")
    return entry
