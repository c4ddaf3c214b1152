"""The fleet file: a fleet as YAML, for gateways without a cluster and for local mode.

- `format`: the types of the file, and how it is parsed and written.

`fairlead.fleet.file_source` watches a file and yields a new Fleet after every edit.

docs/reference/fleet-file.md describes the format.
"""

from fairlead.fleet.file.format import format_fleet_file, parse_fleet_file, profile_fields, write_fleet_file
from fairlead.fleet.file_source import FileFleetSource

__all__ = ["FileFleetSource", "format_fleet_file", "parse_fleet_file", "profile_fields", "write_fleet_file"]
