"""Request outcomes for tests, from any of their fields."""

import copy
from dataclasses import fields
from typing import Any

from fairlead_gateway.telemetry import RequestOutcome

_FIELDS = tuple(field.name for field in fields(RequestOutcome))
_DEFAULTS: dict[str, Any] = {
    "request_id": "r1",
    "model_key": "default/tiny",
    "instance_id": None,
    "status": 200,
    "error": None,
    "started_wall": 0.0,
    "duration_seconds": 1.0,
}


def make_outcome(*values: Any, **named: Any) -> RequestOutcome:
    """Returns an outcome. `values` are fields in order, `named` any others."""
    known = _DEFAULTS | dict(zip(_FIELDS, values, strict=False)) | named
    return change_outcome(RequestOutcome(*[known[name] for name in _DEFAULTS]), **known)


def change_outcome(outcome: RequestOutcome, **named: Any) -> RequestOutcome:
    """Returns a copy with other values of some fields."""
    changed = copy.copy(outcome)
    for name, value in named.items():
        setattr(changed, name, value)
    return changed
