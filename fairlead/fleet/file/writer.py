"""Writes fleet files: one instance per line, replaced atomically."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic.alias_generators import to_camel

from fairlead import units
from fairlead.engine_profile import EngineProfile, builtin_profiles
from fairlead.fleet.model import Fleet, Instance, KvPullSource, Model, RequestPolicy, TokenPrice, UnknownFields
from fairlead.manifests.yaml_nodes import resolve_scalar
from fairlead.routes.model import Fallback, RequestRewrite, Route, RouteRule, RouteTarget
from fairlead.runtime.atomic_write import write_atomic

_BARE_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9.-]*")


def format_fleet_file(fleet: Fleet) -> str:
    """Returns the fleet as text of a fleet file, one instance per line, without `signals`."""
    lines = ["models:" if fleet.models else "models: []"]
    for key, model in fleet.models.items():
        lines.append(f"  - name: {_format_flow(model.name)}")
        lines.append(f"    namespace: {_format_flow(model.namespace)}")
        lines.append(f"    slo: {_format_flow(_slo_fields(model))}")
        attempts = {} if model.max_attempts is None else {"maxAttempts": model.max_attempts}
        lines.append(f"    routing: {_format_flow({'preset': model.preset} | attempts)}")
        if model.served_names:
            lines.append(f"    servedNames: {_format_flow(list(model.served_names))}")
        if model.route_namespaces:
            lines.append(f"    allowedRoutes: {_format_flow(sorted(model.route_namespaces))}")
        if model.wakes:
            lines.append("    wakes: true")
        lines += [f"    {name}: {_format_flow(value)}" for name, value in _policy_fields(model.requests).items()]
        if model.adapters:
            lines.append(f"    adapterSlots: {model.adapter_slots}")
            lines.append("    adapters:")
            lines += [f"      - {_format_flow({'name': one.name, 'source': one.source})}" for one in model.adapters]
        instances = fleet.instances.get(key, ())
        if model.price is not None:
            lines.append(f"    price: {_format_flow(_price_fields(model.price))}")
        lines.append("    instances:" if instances else "    instances: []")
        lines += [f"      - {_format_flow(_instance_fields(one))}" for one in instances]
    if fleet.routes:
        lines.append("routes:")
        lines += [f"  - {_format_flow(_route_fields(route))}" for route in fleet.routes.values()]
    return "\n".join(lines) + "\n"


def _format_flow(value: Any) -> str:
    """Returns a value on one line. Text is unquoted only if every YAML reader takes it as text."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_format_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_format_flow(item) for item in value) + "]"
    if isinstance(value, str):
        bare = _BARE_TEXT.fullmatch(value) and isinstance(resolve_scalar(value), str)
        return value if bare else '"' + "".join(_escape(char) for char in value) + '"'
    return repr(value)


def _escape(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return char if char == " " or (char.isprintable() and not char.isspace()) else f"\\U{ord(char):08x}"


def _policy_fields(policy: RequestPolicy) -> dict[str, Any]:
    """Returns the settings that are not the default."""
    entry: dict[str, Any] = {}
    if policy.unknown_fields is not UnknownFields.default_of(policy.engines):
        entry["unknownFields"] = policy.unknown_fields.value
    if policy.allowed_fields:
        entry["allowedFields"] = sorted(policy.allowed_fields)
    if policy.allowed_paths:
        entry["allowedPaths"] = sorted(policy.allowed_paths)
    if policy.allowed_headers:
        entry["allowedHeaders"] = sorted(policy.allowed_headers)
    if policy.sets_priority:
        entry["setsPriority"] = True
    return entry


def _slo_fields(model: Model) -> dict[str, Any]:
    values = model.objectives
    entry: dict[str, Any] = {"target": values.target}
    if values.ttft_seconds is not None:
        entry["ttft"] = units.format_exact_duration(values.ttft_seconds)
        if values.ttft_per_kilo_token_seconds:
            entry["ttftPerKiloToken"] = units.format_exact_duration(values.ttft_per_kilo_token_seconds)
    if values.itl_seconds is not None:
        entry["tpot"] = units.format_exact_duration(values.itl_seconds)
    return entry


def _route_fields(route: Route) -> dict[str, Any]:
    served = [name for name in route.names if name != route.name]
    entry: dict[str, Any] = {"name": route.name, "namespace": route.namespace}
    if served:
        entry["servedNames"] = served
    entry["targets"] = _target_fields(route.targets)
    if route.overrides:
        entry["overrides"] = [_override_fields(override) for override in route.overrides]
    if route.rewrite is not None:
        entry["rewrite"] = _rewrite_fields(route.rewrite)
    if route.fallbacks:
        entry["onFailure"] = [_fallback_fields(fallback) for fallback in route.fallbacks]
    if route.shadow is not None:
        entry["shadow"] = {"model": route.shadow.model, "percent": route.shadow.percent}
    return entry


def _override_fields(override: RouteRule) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    if override.headers:
        entry["headers"] = {_format_flow(name): value for name, value in override.headers}
    if override.tenants:
        entry["tenants"] = sorted(override.tenants)
    if override.min_context_tokens:
        entry["minContextTokens"] = override.min_context_tokens
    entry["targets"] = _target_fields(override.targets)
    if override.rewrite is not None:
        entry["rewrite"] = _rewrite_fields(override.rewrite)
    return entry


def _rewrite_fields(rewrite: RequestRewrite) -> dict[str, Any]:
    return {"defaults": dict(rewrite.defaults), "caps": dict(rewrite.caps)}


def _fallback_fields(fallback: Fallback) -> dict[str, Any]:
    entry: dict[str, Any] = {"when": sorted(kind.value for kind in fallback.when), "to": fallback.to}
    return entry if fallback.after is None else {**entry, "after": fallback.after}


def _target_fields(targets: tuple[RouteTarget, ...]) -> list[dict[str, Any]]:
    return [{"model": target.model, "weight": target.weight} for target in targets]


def _price_fields(price: TokenPrice) -> dict[str, str]:
    return {to_camel(item.name): units.format_token_price(getattr(price, item.name)) for item in fields(TokenPrice)}


def _instance_fields(one: Instance) -> dict[str, Any]:
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
        entry["kvPull"] = {to_camel(item.name): getattr(one.pull, item.name) for item in fields(KvPullSource)}
    if one.access.ca_file is not None:
        entry["tls"] = {"caFile": one.access.ca_file}
    auth = {"tokenEnv": one.access.token_env, "tokenFile": one.access.token_file}
    if any(auth.values()):
        entry["auth"] = {name: value for name, value in auth.items() if value is not None}
    if one.replica_nano_usd_per_hour is not None:
        entry["costPerHour"] = units.format_exact_usd(one.replica_nano_usd_per_hour)
    if one.profile is not None:
        entry["profile"] = _profile_value(one.profile)
    return entry


def _profile_value(profile: EngineProfile) -> str | dict[str, Any]:
    return profile.name if builtin_profiles().get(profile.name) == profile else profile_fields(profile)


def profile_fields(profile: EngineProfile) -> dict[str, Any]:
    """Returns every field of a profile under its name in the fleet file."""
    return {to_camel(item.name): getattr(profile, item.name) for item in fields(EngineProfile)}


def write_fleet_file(path: Path, fleet: Fleet) -> None:
    """Replaces the file at `path`. Readers see the old fleet or the new one."""
    write_atomic(path, format_fleet_file(fleet).encode(), mode=0o644)  # contains no secret
