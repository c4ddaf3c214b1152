"""Audit records: who changed or read what, when, what it was before, and why.

Every process of a control plane writes the same records. In reading order:

- `record`: `AuditRecord`, one line of JSON, and the closed list of actions.
- `log`: `AuditLog`, the records of one process: in memory, on a stream, and in files.
- `files`: the files of one process, their rotation and their retention.
- `reader`: the records of a folder, and which of them are asked for.
"""

from fairlead.audit.log import AuditLog, AuditOptions
from fairlead.audit.record import Action, AuditEvent, AuditRecord, short_digest

__all__ = ["Action", "AuditEvent", "AuditLog", "AuditOptions", "AuditRecord", "short_digest"]
