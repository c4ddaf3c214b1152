"""Audit records for people: one line each, and a change of several gateways once."""

from collections.abc import Sequence
from datetime import UTC, datetime

from fairlead.audit.record import AuditRecord, Value
from fairlead_cli.formatting import align_columns, printable

_SAME_SECONDS = 30.0
"""Gateways see the same change within this time."""


def render_records(records: Sequence[AuditRecord], *, is_wide: bool) -> str:
    """Returns a table. ``is_wide``: with the processes, and every record."""
    if not records:
        return "no audit records"
    shown = records if is_wide else merge_gateways(records)
    rows = [("TIME", "ACTION", "OBJECT", "ACTOR", "CHANGE", *(("PROCESS",) if is_wide else ()))]
    for record in shown:
        process = f"{record.component} {record.instance} #{record.sequence}"
        time = datetime.fromtimestamp(record.wall, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        row = (time, record.action, record.object, record.actor, describe_change(record))
        rows.append(tuple(map(printable, (*row, process) if is_wide else row)))
    return align_columns(rows)


def describe_change(record: AuditRecord) -> str:
    """Returns what changed and why: ``tier Standard → Batch; reason``."""
    parts = []
    for name in {**record.before, **record.after}:
        before, after = record.before.get(name), record.after.get(name)
        if name not in record.before:
            parts.append(f"{name} {_show(after)}")
        elif name not in record.after:
            parts.append(f"{name} {_show(before)} → none")
        elif before != after:
            parts.append(f"{name} {_show(before)} → {_show(after)}")
    return "; ".join(text for text in (", ".join(parts), record.reason) if text)


def merge_gateways(records: Sequence[AuditRecord]) -> list[AuditRecord]:
    """Returns the records without those of further gateways about the same change."""
    merged: list[AuditRecord] = []
    last: dict[tuple[object, ...], AuditRecord] = {}
    for record in records:
        values = (tuple(record.before.items()), tuple(record.after.items()), record.reason)
        key = (record.component, record.action, record.object, record.actor, *values)
        known = last.get(key)
        if known is not None and known.instance != record.instance and record.wall - known.wall <= _SAME_SECONDS:
            continue
        last[key] = record
        merged.append(record)
    return merged


def _show(value: Value) -> str:
    return "none" if value is None else str(value)
