"""The spelling of specs that revision hashes are computed over.

Why: workloads and the labels of pods carry the hashes. A renamed field must not change them,
or every engine would restart. They are therefore computed over the words of release 0.1.
"""

from collections.abc import Mapping
from typing import Any

from fairlead.units import parse_quantity

_POOL_BOUNDS = ("minReplicas", "maxReplicas")


def with_first_words(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a spec in the words of release 0.1, without the bounds of its pools."""
    model, engine, cache = (dict(spec.get(name) or {}) for name in ("model", "engine", "kvCache"))
    _rename(model, "uri", "source")
    credentials = dict(model.get("credentials") or {})
    if "secretRef" in credentials:
        model["credentials"] = {"secretName": credentials["secretRef"]["name"]}
    _rename(engine, "type", "kind", str.lower)
    if names := model.pop("servedNames", None):
        engine["servedModelName"] = names[0]
    if cache.get("transfer") == "NIXL":
        cache["transfer"] = "Nixl"
    if offload := dict(cache.get("offload") or {}):
        _rename(offload, "type", "kind")
        cache["offload"] = offload
    pools = [_pool_with_first_words(pool) for pool in spec.get("pools") or []]
    given = {"model": model, "engine": engine, "kvCache": cache}
    return {**spec, **{name: part for name, part in given.items() if part or name in spec}, "pools": pools}


def _pool_with_first_words(pool: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in pool.items() if name not in _POOL_BOUNDS}
    _rename(found, "acceleratorClassName", "accelerator")
    return found


def profile_with_first_words(profile: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a profile with its quantities as floats."""
    return {name: parse_quantity(value) if name.endswith("Seconds") else value for name, value in profile.items()}


def _rename(holder: dict[str, Any], name: str, earlier: str, spell: Any = lambda value: value) -> None:
    if name in holder:
        holder[earlier] = spell(holder.pop(name))
