"""Manifests and options → the engine processes of a stack. Pure, but for the question whether ``vllm`` is installed.

``speed`` runs time faster: the simulated engines are told so, and what the gateway believes of them (profiles) and promises
(objectives) shrinks alike, so that every ratio stays as the manifest has it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from fairlead.api import EngineKind, ModelDeployment, Pool, PoolRole, Transfer
from fairlead.engines import EngineLaunch, EngineReplica, engine_adapter
from fairlead.errors import BadInput
from fairlead.fleet.model import Instance, Model, Role, RoutingPreset, SloTargets, served_name_override
from fairlead.limits import Limits
from fairlead.manifests.loader import Manifests, to_fleet_model
from fairlead_cli.local.processes.child_process import ProcessCommand
from fairlead_cli.local.stack.engine_process import EnginePoolSpec
from fairlead_cli.local.stack.scaled_models import ScaledModelSpec, plan_scaling
from fairlead_cli.local.stack.unsupported_fields import ignored_fields, reject_unsupported

SIMULATED_ENGINE = "sim"
ADOPTED_ENGINE = "vllm"
"""Whose metrics an adopted engine is asked for; one that has others is routed to without them."""
_KV_EVENT_ARGUMENTS = ("--kv-events", "0", "--kv-replay", "0")
"""A simulated engine's switches for telling what it caches, at free ports that it names when it is asked."""
MIN_SPEED, MAX_SPEED = 0.001, 1000
"""Beyond, a step of an engine is too short for a clock or too long for a person."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What the command line may change about a stack."""

    speed: float = 1.0
    seed: int = 0
    preset: str | None = None
    engines_per_process: int = 1
    real: bool = False


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """The pools to run; ``notes`` says in words what of the manifests has no effect here; ``scaled`` are the models that an
    autoscaler sizes."""

    pools: tuple[EnginePoolSpec, ...]
    notes: tuple[str, ...] = ()
    scaled_models: tuple[ScaledModelSpec, ...] = ()

    @property
    def engines(self) -> int:
        """Endpoints in all pools together, adopted ones included."""
        return sum(pool.replicas + len(pool.adopted) for pool in self.pools)


def plan_engines(
    manifests: Manifests, options: PlanOptions, *, find_program: Callable[[str], str | None]
) -> EnginePlan:
    """One PoolPlan for each pool of each model. Raises BadInput naming the flag or the field."""
    _check_options(options, find_program)
    pools: list[EnginePoolSpec] = []
    notes: dict[str, None] = {}
    seed = options.seed
    for deployment in manifests.models:
        reject_unsupported(deployment, real=options.real)
        if fields := ignored_fields(deployment):
            notes[f"{deployment.metadata.name}: no effect in local mode: {', '.join(fields)}"] = None
        model = local_model(to_fleet_model(deployment), options)
        for pool in deployment.spec.pools:
            if pool.is_external:
                pools.append(_adopted(manifests, deployment, pool, model))
                continue
            found, ignored = _pool(manifests, deployment, pool, model, options, seed)
            seed += found.replicas
            pools.append(found)
            if ignored:
                shown = " ".join(ignored).replace(" --", ", --")
                notes[f"{deployment.metadata.name}: no effect on simulated engines: {shown}"] = None
    scaling = plan_scaling(manifests, pools)
    if not scaling.models and not any(pool.replicas or pool.adopted for pool in pools):
        raise BadInput("no pool has a replica", field="spec.pools", hint="set replicas: {min: 1}")
    several = len(manifests.models) > 1
    named = (replace(pool, label=f"{pool.model.name}/{pool.name}" if several else pool.name) for pool in pools)
    return EnginePlan(tuple(named), (*notes, *scaling.notes), scaling.models)


def local_model(model: Model, options: PlanOptions) -> Model:
    """The model on our clock, with the preset that the command line wants."""
    shrunk = SloTargets(
        target=model.objectives.target,
        ttft_seconds=_shrink(model.objectives.ttft_seconds, options.speed),
        ttft_per_kilo_token_seconds=model.objectives.ttft_per_kilo_token_seconds / options.speed,
        itl_seconds=_shrink(model.objectives.itl_seconds, options.speed),
    )
    return replace(model, objectives=shrunk, preset=options.preset or model.preset)


def _shrink(seconds: float | None, speed: float) -> float | None:
    return None if seconds is None else seconds / speed


def _check_options(options: PlanOptions, installed: Callable[[str], str | None]) -> None:
    presets = [preset.value for preset in RoutingPreset]
    if options.preset is not None and options.preset not in presets:
        known = ", ".join(presets)
        raise BadInput(f"--preset: {options.preset!r} is no routing preset", field="--preset", hint=f"known: {known}")
    if not MIN_SPEED <= options.speed <= MAX_SPEED:  # NaN too
        raise BadInput(f"--speed must be from {MIN_SPEED} to {MAX_SPEED}, not {options.speed:g}", field="--speed")
    most = Limits().sim_engines_per_process
    if not 1 <= options.engines_per_process <= most:
        raise BadInput(f"--engines-per-process must be from 1 to {most}", field="--engines-per-process")
    if options.real and options.speed != 1.0:
        raise BadInput("--speed is for simulated engines; real ones run as fast as they do", field="--speed")
    if options.real and options.engines_per_process != 1:
        raise BadInput("--engines-per-process is for simulated engines", field="--engines-per-process")
    if options.real and installed("vllm") is None:
        hint = "install vLLM in this environment, or leave --real out to simulate it"
        raise BadInput("--real: there is no `vllm` on PATH", field="--real", hint=hint)


def _pool(
    manifests: Manifests, deployment: ModelDeployment, pool: Pool, model: Model, options: PlanOptions, seed: int
) -> tuple[EnginePoolSpec, tuple[str, ...]]:
    spec = deployment.spec
    kind = spec.engine.kind.value if options.real else SIMULATED_ENGINE
    profile = manifests.engine_profile(pool)
    assert profile is not None  # only pools that adopt do without an accelerator
    transfer = _transfer(spec.engine.kind, spec.kv_cache.transfer)
    hand_over = _handoff_arguments(pool, transfer) if kind == SIMULATED_ENGINE else ()
    base = EngineReplica(
        name=spec.engine.served_model_name or deployment.metadata.name,
        source=spec.model.source,
        profile=profile,
        kind=spec.engine.kind.value,
        args=tuple(spec.engine.args),
        env={variable.name: variable.value for variable in spec.engine.env if variable.value_from is None},
        speed=options.speed,
        sleeps=spec.can_sleep,
    )

    def launch(ports: tuple[int, ...], first: int) -> EngineLaunch:
        return engine_adapter(kind).launch_command(replace(base, seed=seed + first), ports)

    def command(ports: tuple[int, ...], first: int) -> ProcessCommand:
        launched = launch(ports, first)
        return ProcessCommand(
            (*launched.command, *(_KV_EVENT_ARGUMENTS if kind == SIMULATED_ENGINE else ()), *hand_over),
            dict(launched.env),
        )

    trial = launch((1,), 0)  # refuses now what would fail later
    template = replace(
        _template(deployment, pool, model),
        engine=kind,
        profile=profile.sped_up(options.speed) if options.speed != 1.0 else profile,
        transfer=transfer if hand_over else None,
    )
    group = options.engines_per_process if kind == SIMULATED_ENGINE else 1
    count = spec.desired_instances(pool)
    sleep = spec.autoscaling.sleep
    made = EnginePoolSpec(model, pool.name, count, template, command, pool.name, trial.prints_ready_line, group)
    return replace(made, sleep_level=None if sleep is None else sleep.level), trial.ignored_args


def _transfer(kind: EngineKind, transfer: Transfer) -> str:
    """How the gateway speaks to both sides: SGLang's engines have a way of their own over either library."""
    return "sglang" if kind is EngineKind.SGLANG else transfer.value.lower()


def _handoff_arguments(pool: Pool, transfer: str) -> tuple[str, ...]:
    """A simulated engine's switches for its side of the hand-over."""
    if pool.role is PoolRole.SERVE:
        return ()
    side = "kv_producer" if pool.role is PoolRole.PREFILL else "kv_consumer"
    return ("--kv-connector", transfer, "--kv-role", side)


def _template(deployment: ModelDeployment, pool: Pool, model: Model) -> Instance:
    """An instance of the pool as far as all of them are alike; where it is and how it runs comes later."""
    return Instance(
        id="",
        namespace=model.namespace,
        model=model.name,
        pool=pool.name,
        url="",
        role=Role(pool.role.value),
        served_name=served_name_override(deployment.spec.engine.served_model_name, model.name),
    )


def _adopted(manifests: Manifests, deployment: ModelDeployment, pool: Pool, model: Model) -> EnginePoolSpec:
    """Engines that run already: nothing is started, they are routed to."""
    transfer = deployment.spec.kv_cache.transfer
    template = replace(
        _template(deployment, pool, model),
        engine=ADOPTED_ENGINE,
        profile=manifests.engine_profile(pool),
        transfer=None if transfer is Transfer.NONE else transfer.value.lower(),
    )
    adopted = tuple(replace(template, id=_instance_id(one.url), url=one.url) for one in pool.endpoints)
    return EnginePoolSpec(model, pool.name, 0, template, _nothing, pool.name, adopted=adopted)


def _nothing(ports: tuple[int, ...], first: int) -> ProcessCommand:
    raise AssertionError("an adopted engine is not started")


def _instance_id(url: str) -> str:
    """As the fleet file names an instance that has no name: ``HOST/PORT/RANK``."""
    parts = urlsplit(url)
    return f"{parts.hostname}/{parts.port}/0"
