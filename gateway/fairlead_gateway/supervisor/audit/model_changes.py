"""Audit events of two states of the fleet's models. Pure.

Instances are no part of them: they come and go by the autoscaler, which records its own actions.
"""

from collections.abc import Mapping

from fairlead.audit import Action, AuditEvent
from fairlead.audit.record import Value
from fairlead.fleet.model import Model

ACTOR = "fleet"
"""The actor of every change; the gateway sees only that a model changed."""


def models_loaded(models: Mapping[str, Model]) -> AuditEvent:
    """Returns the event of the first fleet after a start."""
    values: dict[str, Value] = {"models": len(models)}
    return AuditEvent(Action.MODELS_LOADED, "Fleet/models", ACTOR, after=values, reason="the gateway started")


def model_changes(before: Mapping[str, Model], after: Mapping[str, Model]) -> list[AuditEvent]:
    """Returns the models that came, went, or are reached or paid for differently."""
    if before is after:
        return []
    events = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old is new or old == new:
            continue
        name = f"Model/{key}"
        if old is None:
            assert new is not None
            events.append(AuditEvent(Action.MODEL_ADDED, name, ACTOR, after=_values(new)))
        elif new is None:
            events.append(AuditEvent(Action.MODEL_REMOVED, name, ACTOR, before=_values(old)))
        elif (was := _values(old)) != (now := _values(new)):
            changed = [field for field in was if was[field] != now[field]]
            events.append(
                AuditEvent(
                    Action.MODEL_CHANGED,
                    name,
                    ACTOR,
                    before={field: was[field] for field in changed},
                    after={field: now[field] for field in changed},
                )
            )
    return events


def _values(model: Model) -> dict[str, Value]:
    price = model.price
    policy = model.requests
    return {
        "preset": model.preset,
        "maxAttempts": model.max_attempts,
        "servedNames": ", ".join(sorted(model.served_names)),
        "bareName": not model.shadowed,
        "wakes": model.wakes,
        "unknownFields": policy.unknown_fields.value,
        "allowedFields": ", ".join(sorted(policy.allowed_fields)),
        "allowedPaths": ", ".join(sorted(policy.allowed_paths)),
        "allowedHeaders": ", ".join(sorted(policy.allowed_headers)),
        "price": None if price is None else f"{price.input}/{price.cached_input}/{price.output}",
    }
