"""The fleet file: a fleet as YAML, for serving without a cluster and for the local supervisor that writes it.

``parse`` and ``dump`` are each other's inverse; ``FileFleetSource`` watches a file and yields a new Fleet after every edit.
See ``docs/reference/fleet-file.md``.
"""

from fairlead.fleetfile.reading import parse
from fairlead.fleetfile.source import FileFleetSource
from fairlead.fleetfile.writing import dump, dump_profile, write_atomic

__all__ = ["FileFleetSource", "dump", "dump_profile", "parse", "write_atomic"]
