"""The engine processes of a stack, from manifests and options. Pure, but for the lookup of
``vllm``.

``speed`` runs time faster. Simulated engines get it as an option; the gateway's profiles and
latency targets shrink alike, so that every ratio stays as in the manifest.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fairlead.adapters.model import LoraAdapter
from fairlead.adapters.resolution import resolve_adapter
from fairlead.api.spec.autoscaling import ScalingMode
from fairlead.api.spec.engine import EngineType
from fairlead.api.spec.kv_cache import Transfer
from fairlead.api.spec.pools import ExternalEndpoint, Pool, PoolRole
from fairlead.api.v1alpha1 import ModelAdapter, ModelDeployment, ModelDeploymentSpec
from fairlead.engines.adapter_protocol import LocalEngineCommand, LocalEngineReplica
from fairlead.engines.registry import engine_adapter
from fairlead.engines.sim import SIM_ENGINES_PER_PROCESS
from fairlead.errors import BadInput
from fairlead.fleet.engine_url import endpoint_id
from fairlead.fleet.model import (
    EXTERNAL_API,
    EngineAuth,
    Instance,
    Model,
    RoutingPreset,
    SloTargets,
    served_name_override,
)
from fairlead.manifests.loader import Manifests, plan_routes, to_fleet_model
from fairlead.routes.model import Route
from fairlead_autoscaler.core import PoolSpec, SleepTier
from fairlead_autoscaler.model_spec import replica_cost, replica_usd, sleep_tier
from fairlead_cli.local.processes.child_process import ProcessCommand
from fairlead_cli.local.processes.embedded_redis import MAX_SOCKET_PATH_BYTES
from fairlead_cli.local.stack.engine_process import EnginePoolSpec

SIMULATED_ENGINE = "sim"
ADOPTED_ENGINE = "vllm"
"""Engine type whose metrics an adopted engine is expected to have; without them it is routed to all
the same.
"""
ENGINE_TOKEN_VARIABLE = "ENGINE_TOKEN"
"""Environment variable of gateway and indexer with the API key of real engines."""
_VLLM_KEY_VARIABLE = "VLLM_API_KEY"
_ADAPTER_VARIABLES = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
_RANK_FLAGS = ("--data-parallel-size", "-dp")

_MODEL = ("revision", "credentials", "cache")
_ENGINE = ("image", "command", "imagePullSecrets", "port", "healthPath")
_POOL = ("parallelism", "template")
_CA = "caSecretKeyRef"
_CHANGES_ANSWERS = ("spec.model.revision", "spec.pools[].parallelism", "spec.engine.env[].valueFrom")
"""A real engine without these would answer differently, or not start."""


@dataclass(frozen=True, slots=True)
class ScaledModelSpec:
    """A scaled model: policy and pools as in the manifest. The autoscaler's time runs as fast as
    the engines'.
    """

    key: str
    objectives: SloTargets
    policy: Mapping[str, Any]
    pools: tuple[PoolSpec, ...] = ()


def plan_scaling(manifests: Manifests, pools: Sequence[EnginePoolSpec]) -> tuple[list[ScaledModelSpec], list[str]]:
    """Returns the models to scale, and notes on those that request scaling but cannot be scaled
    here.
    """
    models: list[ScaledModelSpec] = []
    notes: list[str] = []
    for deployment in manifests.models:
        spec, name = deployment.spec, deployment.metadata.name
        if spec.autoscaling.mode is ScalingMode.DISABLED:
            continue
        engine_pools = {pool.name: pool for pool in pools if pool.model.key == deployment.key and not pool.adopted}
        if spec.replicas is not None:
            notes.append(f"{name}: not scaled, since spec.replicas sets the number")
        elif any(pool.engines_per_process > 1 for pool in engine_pools.values()):
            notes.append(f"{name}: not scaled, since its engines share processes")
        elif engine_pools:
            models.append(_scaled_model(manifests, deployment, engine_pools))
    return models, notes


def _scaled_model(
    manifests: Manifests, deployment: ModelDeployment, engine_pools: Mapping[str, EnginePoolSpec]
) -> ScaledModelSpec:
    policy = deployment.spec.autoscaling.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    tier = sleep_tier(deployment.spec)
    pools = tuple(_pool_spec(manifests, pool, tier) for pool in deployment.spec.pools if pool.name in engine_pools)
    return ScaledModelSpec(deployment.key, deployment.spec.slo.to_targets(), policy, pools)


def _pool_spec(manifests: Manifests, pool: Pool, tier: SleepTier | None) -> PoolSpec:
    accelerator = manifests.accelerators.get(pool.accelerator_class_name or "")
    return PoolSpec(
        name=pool.name,
        role=pool.role,
        cost_per_hour=replica_cost(None if accelerator is None else accelerator.spec, pool),
        minimum=pool.min_replicas,
        maximum=pool.min_replicas if pool.max_replicas is None else pool.max_replicas,
        profile=manifests.engine_profile(pool),
        usd_per_hour=replica_usd(None if accelerator is None else accelerator.spec, pool),
        tier=tier,
    )


MIN_SPEED, MAX_SPEED = 0.001, 1000
"""Beyond these, a step of an engine is too short for a clock or too long for a person."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Options that change the engines of a stack.

    engine_token: the API key of real engines, by which they refuse web pages; empty without any.
    """

    speed: float = 1.0
    seed: int = 0
    preset: str | None = None
    engines_per_process: int = 1
    real: bool = False
    engine_token: str = ""


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """Pools to run, notes on fields without effect, the models that an autoscaler scales, and the
    routes.
    """

    pools: tuple[EnginePoolSpec, ...]
    notes: tuple[str, ...] = ()
    scaled_models: tuple[ScaledModelSpec, ...] = ()
    routes: tuple[Route, ...] = ()

    @property
    def engines(self) -> int:
        return sum(pool.replicas + len(pool.adopted) for pool in self.pools)


def plan_engines(
    manifests: Manifests, options: PlanOptions, *, find_program: Callable[[str], str | None]
) -> EnginePlan:
    """Returns the plan for all pools of all models. Raises BadInput with the flag or the field."""
    _check_options(options, find_program)
    pools: list[EnginePoolSpec] = []
    notes: dict[str, None] = {f"{skipped.file}: {skipped.message}": None for skipped in manifests.skipped}
    if manifests.tenants:
        notes["clients need the API key of a tenant (fairlead keys create): export it as FAIRLEAD_API_KEY"] = None
    adapters, adapter_notes = _plan_adapters(manifests, options)
    notes |= dict.fromkeys(adapter_notes)
    seed = options.seed
    for deployment in manifests.models:
        reject_unsupported(deployment, real=options.real)
        if fields := ignored_fields(deployment):
            notes[f"{deployment.metadata.name}: no effect in local mode: {', '.join(fields)}"] = None
        model = local_model(to_fleet_model(deployment), options)
        if deployment.spec.adapters is not None:
            slots, held = deployment.spec.adapters.slots, tuple(adapters.get(model.key, ()))
            model = replace(model, adapters=held, adapter_slots=slots)
        for pool in deployment.spec.pools:
            if pool.is_external:
                pools.append(_plan_adopted_pool(manifests, deployment, pool, model))
                for variable in filter(None, map(token_variable, pool.endpoints)):
                    notes[f"{deployment.metadata.name}: its token is the environment variable {variable}"] = None
                continue
            pool_spec, pool_notes = _plan_pool(manifests, deployment, pool, model, options, seed)
            seed += pool_spec.replicas
            pools.append(pool_spec)
            notes |= dict.fromkeys(f"{deployment.metadata.name}: {note}" for note in pool_notes)
    scaled_models, scaling_notes = plan_scaling(manifests, pools)
    if not scaled_models and not any(pool.replicas or pool.adopted for pool in pools):
        raise BadInput("no pool has a replica", field="spec.pools", hint="set minReplicas: 1")
    has_several_models = len(manifests.models) > 1
    labelled = (
        replace(pool, label=f"{pool.model.name}/{pool.name}" if has_several_models else pool.name) for pool in pools
    )
    return EnginePlan(tuple(labelled), (*notes, *scaling_notes), tuple(scaled_models), plan_routes(manifests))


def _plan_adapters(manifests: Manifests, options: PlanOptions) -> tuple[dict[str, list[LoraAdapter]], list[str]]:
    """Returns the LoRA adapters by the key of their base, and notes on what is left out."""
    bases = {to_fleet_model(deployment).key: deployment.spec for deployment in manifests.models}
    found: dict[str, list[LoraAdapter]] = {}
    notes: list[str] = []
    for adapter in manifests.adapters:
        name, key = adapter.metadata.name, f"{adapter.metadata.namespace or 'default'}/{adapter.spec.base}"
        resolution = resolve_adapter(adapter.spec, name, bases.get(key))
        if resolution.source is None:
            notes.append(f"{name}: not served: {resolution.message}")
        elif options.real and adapter.spec.scheme == "pvc":
            notes.append(f"{name}: not served: a real engine of local mode has no claims")
        elif options.real and resolution.download is not None:
            notes.append(f"{name}: not served: a real engine of local mode has no downloader")
        else:
            found.setdefault(key, []).append(LoraAdapter(name, resolution.source))
            notes += _ignored_adapter_fields(adapter)
    return found, notes


def _ignored_adapter_fields(adapter: ModelAdapter) -> list[str]:
    given = {"servedNames": adapter.spec.served_names, "replicas": adapter.spec.replicas}
    names = ", ".join(f"spec.{name}" for name, value in given.items() if value)
    return [f"{adapter.metadata.name}: no effect in local mode: {names}"] if names else []


def _adapter_arguments(spec: ModelDeploymentSpec, engine_type: str) -> tuple[str, ...]:
    """Returns the arguments with which an engine holds LoRA adapters; empty without slots."""
    slots = spec.adapters
    if slots is None:
        return ()
    if engine_type == SIMULATED_ENGINE:
        return ("--max-loaded-loras", str(slots.slots))
    return ("--enable-lora", f"--max-loras={slots.slots}", f"--max-lora-rank={slots.max_rank}")


def local_model(model: Model, options: PlanOptions) -> Model:
    """Returns the model with latency targets on the local clock and the preset of the options."""
    objectives = SloTargets(
        target=model.objectives.target,
        ttft_seconds=_shrink(model.objectives.ttft_seconds, options.speed),
        ttft_per_kilo_token_seconds=model.objectives.ttft_per_kilo_token_seconds / options.speed,
        itl_seconds=_shrink(model.objectives.itl_seconds, options.speed),
        period_seconds=model.objectives.period_seconds,
    )
    preset = options.preset or model.routing.preset
    return replace(model, objectives=objectives, routing=replace(model.routing, preset=preset))


def _shrink(seconds: float | None, speed: float) -> float | None:
    return None if seconds is None else seconds / speed


def _check_options(options: PlanOptions, find_program: Callable[[str], str | None]) -> None:
    presets = [preset.value for preset in RoutingPreset]
    if options.preset is not None and options.preset not in presets:
        known = ", ".join(presets)
        raise BadInput(
            f"--preset: {options.preset!r} is not a routing preset", field="--preset", hint=f"known: {known}"
        )
    if not MIN_SPEED <= options.speed <= MAX_SPEED:  # NaN too
        raise BadInput(f"--speed must be from {MIN_SPEED} to {MAX_SPEED}, not {options.speed:g}", field="--speed")
    if not 1 <= options.engines_per_process <= SIM_ENGINES_PER_PROCESS:
        raise BadInput(
            f"--engines-per-process must be from 1 to {SIM_ENGINES_PER_PROCESS}", field="--engines-per-process"
        )
    if options.real and options.speed != 1.0:
        raise BadInput("--speed is for simulated engines; real engines run at their own speed", field="--speed")
    if options.real and options.engines_per_process != 1:
        raise BadInput("--engines-per-process is for simulated engines", field="--engines-per-process")
    if options.real and find_program("vllm") is None:
        hint = "install vLLM in this environment, or leave --real out to simulate it"
        raise BadInput("--real: there is no `vllm` on PATH", field="--real", hint=hint)


def _plan_pool(
    manifests: Manifests, deployment: ModelDeployment, pool: Pool, model: Model, options: PlanOptions, seed: int
) -> tuple[EnginePoolSpec, list[str]]:
    """Returns the pool, and notes on what its engines leave out."""
    spec = deployment.spec
    engine_type = spec.engine.type.label if options.real else SIMULATED_ENGINE
    profile = manifests.engine_profile(pool)
    assert profile is not None  # only pools that adopt do without an accelerator
    transfer = "sglang" if spec.engine.type is EngineType.SGLANG else spec.kv_cache.transfer.value.lower()
    is_simulated = engine_type == SIMULATED_ENGINE
    transfer_arguments = _transfer_arguments(pool, transfer) if is_simulated else ()
    adapter_arguments = _adapter_arguments(spec, engine_type)
    given = (*spec.engine.args, *pool.args) if spec.engine.type is EngineType.SIM or not is_simulated else ()
    events, event_arguments, notes = _plan_events(spec, given, is_simulated=is_simulated)
    variables = {variable.name: variable.value for variable in spec.engine.env if variable.value_from is None}
    base = LocalEngineReplica(
        name=spec.model.engine_name or deployment.metadata.name,
        source=spec.model.uri,
        profile=profile,
        kind=spec.engine.type.label,
        args=(*spec.engine.args, *pool.args, *(() if is_simulated else adapter_arguments)),
        env=variables
        | (_ADAPTER_VARIABLES if adapter_arguments and not is_simulated else {})
        | ({_VLLM_KEY_VARIABLE: options.engine_token} if options.engine_token else {}),
        speed=options.speed,
        sleeps=spec.can_sleep,
    )

    def launch(ports: tuple[int, ...], first: int) -> LocalEngineCommand:
        return engine_adapter(engine_type).local_launch_command(replace(base, seed=seed + first), ports)

    def command(ports: tuple[int, ...], first: int) -> ProcessCommand:
        engine_launch = launch(ports, first)
        return ProcessCommand(
            (
                *engine_launch.command,
                *((*events, *adapter_arguments) if is_simulated else ()),
                *transfer_arguments,
            ),
            dict(engine_launch.env),
        )

    first_launch = launch((1,), 0)  # refuses now what would fail later
    template = replace(
        _template(deployment, pool, model),
        engine=engine_type,
        access=EngineAuth(token_env=ENGINE_TOKEN_VARIABLE if options.engine_token else None),
        profile=profile.sped_up(options.speed) if options.speed != 1.0 else profile,
        transfer=transfer if transfer_arguments else None,
        replica_nano_usd_per_hour=_replica_price(manifests, pool),
    )
    engines_per_process = options.engines_per_process if is_simulated else 1
    replicas = spec.desired_instances(pool)
    sleep = spec.autoscaling.sleep
    pool_spec = EnginePoolSpec(
        model, pool.name, replicas, template, command, pool.name, first_launch.prints_ready_line, engines_per_process
    )
    pool_spec = replace(
        pool_spec,
        sleep_level=None if sleep is None else sleep.level,
        event_arguments=event_arguments,
    )
    if first_launch.ignored_args:
        arguments = " ".join(first_launch.ignored_args).replace(" --", ", --")
        notes.append(f"no effect on simulated engines: {arguments}")
    return pool_spec, notes


def _plan_events(
    spec: ModelDeploymentSpec, given: Sequence[str], *, is_simulated: bool
) -> tuple[tuple[str, ...], Callable[[str, str], tuple[str, ...]] | None, list[str]]:
    """Returns arguments by which engines publish KV events on any ports, `event_arguments`, and
    notes on engines that publish none.

    given: the arguments of the manifest that the engines understand.
    """
    if not spec.kv_cache.events or any(argument.startswith("--kv-events") for argument in given):
        return (), None, []
    has_ranks = any(argument.startswith(_RANK_FLAGS) for argument in given)  # each needs endpoints of its own
    if not is_simulated:
        notes = ["no KV events, since vLLM gives the ranks of an engine no unix sockets of their own"]
        return ((), None, notes) if has_ranks else ((), _vllm_event_arguments, [])
    return (("--kv-events", "0", "--kv-replay", "0"), None, []) if has_ranks else ((), _sim_event_arguments, [])


def _sim_event_arguments(events: str, replay: str) -> tuple[str, ...]:
    return ("--kv-events", events, "--kv-replay", replay)


def _vllm_event_arguments(events: str, replay: str) -> tuple[str, ...]:
    config = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": events, "replay_endpoint": replay}
    return (f"--kv-events-config={json.dumps(config)}",)


def place_event_sockets(plan: EnginePlan, folder: Path) -> EnginePlan:
    """Returns the plan in which real engines publish KV events on unix sockets in a folder.

    Its path may be too long for sockets: then they publish none, and a note says so.

    Why: vLLM would bind a TCP port on all interfaces, and events have the tokens of prompts.
    """
    longest = len(f"{folder}/65535.events".encode())
    pools, notes = [], list(plan.notes)
    for pool in plan.pools:
        if pool.event_arguments is None or pool.template.engine == SIMULATED_ENGINE:
            pools.append(pool)
        elif longest <= MAX_SOCKET_PATH_BYTES:
            pools.append(replace(pool, event_folder=folder))
        else:
            pools.append(replace(pool, event_arguments=None))
            notes.append(
                f"{pool.label}: no KV events, since {folder} is too long for unix sockets: "
                "set XDG_RUNTIME_DIR to a shorter path"
            )
    return replace(plan, pools=tuple(pools), notes=tuple(notes))


def _replica_price(manifests: Manifests, pool: Pool) -> int | None:
    accelerator = manifests.accelerators.get(pool.accelerator_class_name or "")
    return None if accelerator is None else accelerator.spec.replica_nano_usd_per_hour(pool.parallelism)


def _transfer_arguments(pool: Pool, transfer: str) -> tuple[str, ...]:
    """Returns a simulated engine's arguments for its role in the KV transfer."""
    if pool.role is PoolRole.SERVE:
        return ()
    role = "kv_producer" if pool.role is PoolRole.PREFILL else "kv_consumer"
    return ("--kv-connector", transfer, "--kv-role", role)


def _template(deployment: ModelDeployment, pool: Pool, model: Model) -> Instance:
    """Returns an instance with the fields that all instances of the pool share."""
    return Instance(
        id="",
        namespace=model.namespace,
        model=model.name,
        pool=pool.name,
        url="",
        role=pool.role,
        served_name=served_name_override(deployment.spec.model.engine_name, model.name),
    )


def _plan_adopted_pool(manifests: Manifests, deployment: ModelDeployment, pool: Pool, model: Model) -> EnginePoolSpec:
    """Returns a pool of running engines, which are routed to but not started."""
    transfer = deployment.spec.kv_cache.transfer
    is_api = deployment.spec.engine.type is EngineType.OPENAI
    template = replace(
        _template(deployment, pool, model),
        engine=EXTERNAL_API if is_api else ADOPTED_ENGINE,
        profile=manifests.engine_profile(pool),
        transfer=None if transfer is Transfer.NONE else transfer.value.lower(),
    )
    adopted = tuple(
        replace(
            template,
            id=endpoint_id(endpoint.url, model.key if is_api else ""),
            url=endpoint.url,
            access=EngineAuth(token_env=token_variable(endpoint)),
        )
        for endpoint in pool.endpoints
    )
    return EnginePoolSpec(model, pool.name, 0, template, _reject_start, pool.name, adopted=adopted)


def token_variable(endpoint: ExternalEndpoint) -> str | None:
    """Returns the environment variable that stands for the Secret of an endpoint's token.

    Why: local mode has no Secrets. None if the endpoint expects no token.
    """
    reference = endpoint.token_secret_key_ref
    if reference is None:
        return None
    return "SECRET_" + re.sub(r"[^A-Z0-9]", "_", f"{reference.name}_{reference.key}".upper())


def _reject_start(ports: tuple[int, ...], first: int) -> ProcessCommand:
    raise AssertionError("an adopted engine is not started")


def reject_unsupported(deployment: ModelDeployment, *, real: bool) -> None:
    """Raises BadInput with a field that local mode cannot honour, and what to do instead."""
    spec, name = deployment.spec, deployment.metadata.name
    for index, pool in enumerate(spec.pools):
        if pool.selector is not None:
            message = f"{name}: local mode has no pods that a selector could find"
            raise BadInput(message, field=f"spec.pools[{index}].selector", hint="give endpoints: [{url: ...}] instead")
    if not real or spec.is_external:
        return
    engine_type = spec.engine.type
    if engine_type not in (EngineType.VLLM, EngineType.SIM):
        message = f"{name}: local mode runs no engine of type {engine_type.value}"
        hint = "leave --real out to simulate it, or start it yourself and write `type: External` with its endpoints"
        raise BadInput(message, field="spec.engine.type", hint=hint)
    for index, pool in enumerate(spec.pools):
        if pool.role is not PoolRole.SERVE and engine_type is EngineType.VLLM:
            message = f"{name}: local mode splits prefill from decode for simulated engines only"
            raise BadInput(message, field=f"spec.pools[{index}].role", hint="leave --real out, or use the role Serve")
    for path in ignored_fields(deployment):
        if "".join(char for char in path if not char.isdigit()) in _CHANGES_ANSWERS and engine_type is EngineType.VLLM:
            message = f"{name}: a real engine of local mode cannot honour {path}"
            raise BadInput(message, field=path, hint="remove it, or leave --real out")


def ignored_fields(deployment: ModelDeployment) -> tuple[str, ...]:
    return tuple(_find_ignored(deployment.spec.model_dump(by_alias=True, exclude_defaults=True)))


def _find_ignored(spec: dict[str, Any]) -> Iterator[str]:
    yield from (f"spec.model.{name}" for name in _MODEL if name in spec["model"])
    engine = spec.get("engine", {})
    yield from (f"spec.engine.{name}" for name in _ENGINE if name in engine)
    yield from (
        f"spec.engine.env[{n}].valueFrom" for n, variable in enumerate(engine.get("env", ())) if "valueFrom" in variable
    )
    for index, pool in enumerate(spec["pools"]):
        yield from (f"spec.pools[{index}].{name}" for name in _POOL if name in pool)
        endpoints = enumerate(pool.get("endpoints", ()))
        yield from (f"spec.pools[{index}].endpoints[{n}].{_CA}" for n, endpoint in endpoints if _CA in endpoint)
    if "offload" in spec.get("kvCache", {}):
        yield "spec.kvCache.offload"
    if "claimNames" in spec.get("adapters", {}):
        yield "spec.adapters.claimNames"
    if "rollout" in spec:
        yield "spec.rollout"
