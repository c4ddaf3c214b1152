"""Writes fleet files: one instance per line, replaced atomically."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic.alias_generators import to_camel

from fairlead import units
from fairlead.engine_profile import EngineProfile, builtin_profiles
from fairlead.fleet.model import Fleet, Instance, KvPullSource, Model, SloTargets, TokenPrice, UnknownFields
from fairlead.manifests.yaml_nodes import resolve_scalar
from fairlead.routes.model import Fallback, RequestRewrite, Route, RouteRule, RouteTarget
from fairlead.runtime.atomic_write import write_atomic

_BARE_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9.-]*")


def format_fleet_file(fleet: Fleet) -> str:
    """Returns the fleet as text of a fleet file, one instance per line, without `signals`."""
    lines = ["models:" if fleet.models else "models: []"]
    for key, model in fleet.models.items():
        fields = _model_fields(model) | {"instances": [_instance_fields(one) for one in fleet.instances.get(key, ())]}
        for number, (name, value) in enumerate(fields.items()):
            start = f"{'    ' if number else '  - '}{name}:"
            is_block = isinstance(value, list) and value and isinstance(value[0], dict)
            lines.append(start if is_block else f"{start} {_format_flow(value)}")
            lines += [f"      - {_format_flow(item)}" for item in value] if is_block else []
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
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _escape(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return char if char == " " or (char.isprintable() and not char.isspace()) else f"\\U{ord(char):08x}"


def _given(**fields: Any) -> dict[str, Any]:
    """Returns the fields but those without a value, which are None, False or an empty list."""
    return {name: value for name, value in fields.items() if not (value is None or value is False or value == [])}


def _model_fields(model: Model) -> dict[str, Any]:
    policy, has_adapters = model.requests, bool(model.adapters)
    is_default = policy.unknown_fields is UnknownFields.default_of(policy.engines)
    return _given(
        name=model.name,
        namespace=model.namespace,
        slo=_slo_fields(model.objectives),
        routing=_given(preset=model.preset, maxAttempts=model.max_attempts),
        servedNames=list(model.served_names),
        allowedRoutes=sorted(model.route_namespaces),
        wakes=model.wakes,
        unknownFields=None if is_default else policy.unknown_fields.value,
        allowedFields=sorted(policy.allowed_fields),
        allowedPaths=sorted(policy.allowed_paths),
        allowedHeaders=sorted(policy.allowed_headers),
        setsPriority=policy.sets_priority,
        adapterSlots=model.adapter_slots if has_adapters else None,
        adapters=[{"name": one.name, "source": one.source} for one in model.adapters],
        price=None if model.price is None else _price_fields(model.price),
    )


def _slo_fields(values: SloTargets) -> dict[str, Any]:
    has_ttft = values.ttft_seconds is not None
    seconds = {
        "ttft": values.ttft_seconds,
        "ttftPerKiloToken": (values.ttft_per_kilo_token_seconds or None) if has_ttft else None,
        "tpot": values.itl_seconds,
    }
    durations = {name: units.format_exact_duration(value) for name, value in seconds.items() if value is not None}
    return {"target": values.target, **durations}


def _route_fields(route: Route) -> dict[str, Any]:
    shadow = route.shadow
    return _given(
        name=route.name,
        namespace=route.namespace,
        servedNames=[name for name in route.names if name != route.name],
        targets=_target_fields(route.targets),
        overrides=[_override_fields(override) for override in route.overrides],
        rewrite=_rewrite_fields(route.rewrite),
        onFailure=[_fallback_fields(fallback) for fallback in route.fallbacks],
        shadow=None if shadow is None else {"model": shadow.model, "percent": shadow.percent},
    )


def _override_fields(override: RouteRule) -> dict[str, Any]:
    return _given(
        headers={_format_flow(name): value for name, value in override.headers} or None,
        tenants=sorted(override.tenants),
        minContextTokens=override.min_context_tokens or None,
        targets=_target_fields(override.targets),
        rewrite=_rewrite_fields(override.rewrite),
    )


def _rewrite_fields(rewrite: RequestRewrite | None) -> dict[str, Any] | None:
    return None if rewrite is None else {"defaults": dict(rewrite.defaults), "caps": dict(rewrite.caps)}


def _fallback_fields(fallback: Fallback) -> dict[str, Any]:
    return _given(when=sorted(kind.value for kind in fallback.when), to=fallback.to, after=fallback.after)


def _target_fields(targets: tuple[RouteTarget, ...]) -> list[dict[str, Any]]:
    return [{"model": target.model, "weight": target.weight} for target in targets]


def _price_fields(price: TokenPrice) -> dict[str, str]:
    return {to_camel(item.name): units.format_token_price(getattr(price, item.name)) for item in fields(TokenPrice)}


def _instance_fields(one: Instance) -> dict[str, Any]:
    access, price = one.access, one.replica_nano_usd_per_hour
    pull = {to_camel(item.name): getattr(one.pull, item.name) for item in fields(KvPullSource)} if one.pull else None
    return _given(
        id=one.id,
        url=one.url,
        pool=one.pool,
        engine=one.engine,
        role=one.role.value,
        state=one.state.value,
        weight=one.weight if one.weight != 1.0 else None,
        adapters=sorted(one.adapters),
        servedModelName=one.served_name,
        dpRank=one.dp_rank,
        kvEvents=one.kv_events,
        kvReplay=one.kv_replay,
        kvTransfer=one.transfer,
        bootstrap=one.bootstrap,
        kvPull=pull,
        tls=_given(caFile=access.ca_file) or None,
        auth=_given(tokenEnv=access.token_env, tokenFile=access.token_file) or None,
        costPerHour=None if price is None else units.format_exact_usd(price),
        profile=None if one.profile is None else _profile_value(one.profile),
    )


def _profile_value(profile: EngineProfile) -> str | dict[str, Any]:
    return profile.name if builtin_profiles().get(profile.name) == profile else profile_fields(profile)


def profile_fields(profile: EngineProfile) -> dict[str, Any]:
    """Returns every field of a profile under its name in the fleet file."""
    return {to_camel(item.name): getattr(profile, item.name) for item in fields(EngineProfile)}


def write_fleet_file(path: Path, fleet: Fleet) -> None:
    """Replaces the file at `path`. Readers see the old fleet or the new one."""
    write_atomic(path, format_fleet_file(fleet).encode(), mode=0o644)  # contains no secret
