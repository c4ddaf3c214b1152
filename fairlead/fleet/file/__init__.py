"""The fleet file: a fleet as YAML, for serving without a cluster and for the local supervisor that writes it.

``parse`` and ``dump`` are each other's inverse; ``FileFleetSource`` watches a file and yields a new Fleet after every edit.
See ``docs/reference/fleet-file.md``.
"""

from fairlead.fleet.file.loader import parse_fleet_file
from fairlead.fleet.file.source import FileFleetSource
from fairlead.fleet.file.writer import format_fleet_file, profile_fields, write_fleet_file

__all__ = ["FileFleetSource", "format_fleet_file", "parse_fleet_file", "profile_fields", "write_fleet_file"]
