"""Fleet → fleet file, one instance a line, replaced as a whole."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic.alias_generators import to_camel

from fairlead import units
from fairlead.documents import resolve
from fairlead.files import replace_whole
from fairlead.fleet import Fleet, Instance, Model, Pull
from fairlead.profile import EngineProfile, presets

_BARE = re.compile(r"[A-Za-z][A-Za-z0-9.-]*")


def dump(fleet: Fleet) -> str:
    """The fleet as the text of a fleet file, one instance a line; ``signals`` are not part of it."""
    lines = ["models:" if fleet.models else "models: []"]
    for key, model in fleet.models.items():
        lines.append(f"  - name: {_flow(model.name)}")
        lines.append(f"    namespace: {_flow(model.namespace)}")
        lines.append(f"    objectives: {_flow(_dump_objectives(model))}")
        lines.append(f"    routing: {_flow({'preset': model.preset})}")
        if model.wakes:
            lines.append("    wakes: true")
        instances = fleet.instances.get(key, ())
        lines.append("    instances:" if instances else "    instances: []")
        lines += [f"      - {_flow(_dump_instance(one))}" for one in instances]
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    """A value on one line. Text is left bare only where no YAML reader can take it for anything else."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if isinstance(value, str):
        bare = _BARE.fullmatch(value) and isinstance(resolve(value), str)
        return value if bare else '"' + "".join(_escaped(char) for char in value) + '"'
    return repr(value)


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return char if char == " " or (char.isprintable() and not char.isspace()) else f"\\U{ord(char):08x}"


def _dump_objectives(model: Model) -> dict[str, Any]:
    values = model.objectives
    entry: dict[str, Any] = {"target": values.target}
    if values.ttft_seconds is not None:
        entry["ttft"] = units.exact(values.ttft_seconds)
        if values.ttft_per_kilo_token_seconds:
            entry["ttftPerKiloToken"] = units.exact(values.ttft_per_kilo_token_seconds)
    if values.itl_seconds is not None:
        entry["itl"] = units.exact(values.itl_seconds)
    return entry


def _dump_instance(one: Instance) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": one.id, "url": one.url, "pool": one.pool, "engine": one.engine}
    entry["role"] = one.role.value
    entry["state"] = one.state.value
    if one.weight != 1.0:
        entry["weight"] = one.weight
    if one.adapters:
        entry["adapters"] = sorted(one.adapters)
    optional = {
        "servedModelName": one.served_name,
        "dpRank": one.dp_rank,
        "kvEvents": one.kv_events,
        "kvReplay": one.kv_replay,
        "kvTransfer": one.transfer,
        "bootstrap": one.bootstrap,
    }
    entry.update({name: value for name, value in optional.items() if value is not None})
    if one.pull is not None:
        entry["kvPull"] = {to_camel(item.name): getattr(one.pull, item.name) for item in fields(Pull)}
    if one.access.ca_file is not None:
        entry["tls"] = {"caFile": one.access.ca_file}
    auth = {"tokenEnv": one.access.token_env, "tokenFile": one.access.token_file}
    if any(auth.values()):
        entry["auth"] = {name: value for name, value in auth.items() if value is not None}
    if one.profile is not None:
        entry["profile"] = _dump_profile(one.profile)
    return entry


def _dump_profile(profile: EngineProfile) -> str | dict[str, Any]:
    return profile.name if presets().get(profile.name) == profile else dump_profile(profile)


def dump_profile(profile: EngineProfile) -> dict[str, Any]:
    """A profile as the fleet file has it, number by number."""
    return {to_camel(item.name): getattr(profile, item.name) for item in fields(EngineProfile)}


def write_atomic(path: Path, fleet: Fleet) -> None:
    """Replace the file at ``path``: a reader sees the old fleet or the new one, never a part."""
    replace_whole(path, dump(fleet).encode(), mode=0o644)  # it holds no secret
