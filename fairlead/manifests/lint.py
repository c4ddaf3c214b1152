"""Lint rules: notes on manifests that are valid but may not do what was meant.

`engine.args` follow Fairlead's own arguments and win. The engine then may not be reached, or differ
from the rest of the spec.

In `pools[].template`, the API of a ModelDeployment takes any PodSpec, since clusters differ in
their fields. An unknown field that resembles a known one is therefore a problem, and any other one
a note.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from typing import Any, Final

from fairlead.api.spec.autoscaling import ScalingMode
from fairlead.api.spec.engine import EngineType
from fairlead.api.spec.kv_cache import Transfer
from fairlead.api.spec.pools import Pool, PoolRole
from fairlead.api.v1alpha1 import AcceleratorClass, ModelDeploymentSpec, ModelTenant
from fairlead.engine_profile import EngineProfile
from fairlead.engines.containers.additions import DOWNLOADER_NAME
from fairlead.manifests.known_flags import CHECKED_ENGINES, flag_problem, is_checked_image
from fairlead.manifests.yaml_nodes import format_value
from fairlead.names import suggest_fix
from fairlead.units import format_duration

_Path = tuple[str | int, ...]
_ENGINE: Final = "engine"
_DIRECTIVE: Final = "$patch"
_QUANTITY: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+|[KMGTPE]i|[numkMGTPE])?")
_SELECTOR_OPERATORS: Final = ("In", "NotIn", "Exists", "DoesNotExist")
_VALUES: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("Toleration", "operator"): ("Exists", "Equal", "Lt", "Gt"),
    ("Toleration", "effect"): ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    ("NodeSelectorRequirement", "operator"): (*_SELECTOR_OPERATORS, "Gt", "Lt"),
    ("LabelSelectorRequirement", "operator"): _SELECTOR_OPERATORS,
    ("TopologySpreadConstraint", "whenUnsatisfiable"): ("DoNotSchedule", "ScheduleAnyway"),
    ("Container", "imagePullPolicy"): ("Always", "IfNotPresent", "Never"),
    ("ContainerPort", "protocol"): ("TCP", "UDP", "SCTP"),
    ("SeccompProfile", "type"): ("RuntimeDefault", "Localhost", "Unconfined"),
    ("PodSpec", "dnsPolicy"): ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    ("PodSpec", "restartPolicy"): ("Always",),
    ("PodSpec", "preemptionPolicy"): ("PreemptLowerPriority", "Never"),
}
_SCALARS: Final[Mapping[str, tuple[tuple[type, ...], str, str]]] = {
    "string": ((str,), "text", "put it in quotes"),
    "integer": ((int,), "a whole number", "write it without quotes"),
    "boolean": ((bool,), "true or false", "write one of the two, without quotes"),
    "IntOrString": ((int, str), "a number or text", "write one of the two"),
    "Quantity": ((int, float, str), "a quantity", "write it like 64Gi or 500m"),
}

_OFF: Final = ("false", "0", "no")
_REMOVE: Final = "remove it"

_WHOLE_MODEL: Final = "gateways treat the engines of all pools alike"

NVIDIA_PREFIX: Final = "nvidia.com/"
"""The beginning of the resources whose devices the chart's images are built for."""


@dataclass(frozen=True, slots=True)
class LintNote:
    """A note of `fairlead lint`.

    path: of the field in the document; in a pod template, of the field in its spec.
    is_problem: the API server refuses the pods.
    """

    path: _Path
    message: str
    fix: str
    is_problem: bool = False


_problem = partial(LintNote, is_problem=True)


def lint_template(spec: Mapping[str, Any], *, downloads_adapters: bool = False) -> Iterator[LintNote]:
    """Yields notes on unknown fields, on values of other types, and on containers without image."""
    yield from _lint_value(spec, "PodSpec", ())
    for kind, own in (("containers", _ENGINE), ("initContainers", DOWNLOADER_NAME if downloads_adapters else None)):
        containers = spec.get(kind)
        for index, container in enumerate(containers if isinstance(containers, list) else ()):
            if not isinstance(container, Mapping) or _DIRECTIVE in container or container.get("image"):
                continue
            if own is None or container.get("name") != own:
                message = (
                    f"{format_value(container.get('name'))} has no image, and Fairlead's own is called {own or _ENGINE}"
                )
                yield _problem((kind, index), message, f"add image, or write `name: {own or _ENGINE}`")


@cache
def _fields() -> Mapping[str, Mapping[str, Any]]:
    """Returns the fields of each type, which `fairlead_testing.kube.api_server` writes."""
    text = files("fairlead.manifests").joinpath("pod_fields.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


def _lint_value(value: Any, kind: Any, path: _Path) -> Iterator[LintNote]:
    """Yields notes on a value and on all below it. `null` is right: it removes a field."""
    if value is None or kind == "object":
        return
    if isinstance(kind, str) and kind in _SCALARS:
        yield from _lint_scalar(value, kind, path)
    elif isinstance(kind, list):
        if not isinstance(value, list):
            yield _problem(path, "must be a list", "write each item with - before it")
            return
        for index, item in enumerate(value):
            yield from _lint_value(item, kind[0], (*path, index))
    elif not isinstance(value, Mapping):
        yield _problem(path, "must be a mapping", "write `key: value`")
    elif isinstance(kind, dict):
        for key, item in value.items():
            yield from _lint_value(item, kind["*"], (*path, key))
    else:
        for key, item in value.items():
            if not key.startswith("$"):
                yield from _lint_field(key, item, kind, path)


def _lint_field(name: str, value: Any, kind: str, path: _Path) -> Iterator[LintNote]:
    fields = _fields()[kind]
    here = (*path, name)
    if name not in fields:
        unknown = "leave it if your release of Kubernetes has it"
        fix = suggest_fix(name, fields, unknown)
        yield LintNote(here, f"unknown field of a {kind}", fix, is_problem=fix != unknown)
        return
    allowed = _VALUES.get((kind, name))
    if allowed is not None and isinstance(value, str) and value not in allowed:
        fix = suggest_fix(value, allowed, "write one of them")
        yield _problem(here, f"must be one of {', '.join(allowed)}, not {format_value(value)}", fix)
        return
    yield from _lint_value(value, fields[name], here)


def _lint_scalar(value: Any, kind: str, path: _Path) -> Iterator[LintNote]:
    types, wanted, fix = _SCALARS[kind]
    is_right = isinstance(value, types) and (kind == "boolean" or not isinstance(value, bool))
    if is_right and kind == "Quantity":
        is_right = _QUANTITY.fullmatch(str(value)) is not None
    if not is_right:
        yield _problem(path, f"must be {wanted}, not {format_value(value)}", fix)


@dataclass(frozen=True, slots=True)
class _Conflict:
    """A reason not to give an argument, and what to do instead.

    is_wrong: returns False for specs and values with which the argument does no harm.
    """

    message: str
    fix: str
    is_wrong: Callable[[ModelDeploymentSpec, str | None], bool] = lambda spec, value: True


def _size(name: str) -> _Conflict:
    """Returns the conflict of a parallelism flag that differs from `parallelism` of a pool."""

    def differs(spec: ModelDeploymentSpec, value: str | None) -> bool:
        return any(value != str(getattr(pool.parallelism, name)) for pool in spec.pools)

    return _Conflict(
        f"`parallelism.{name}` of a pool says something else; by that, a pod gets its devices",
        f"remove it, and write `parallelism: {{{name}: NUMBER}}` in the pool",
        differs,
    )


_ADDRESS: Final = _Conflict("gateways and probes reach the engine at the address that Fairlead sets", _REMOVE)
_TLS: Final = _Conflict("gateways and probes speak HTTP without TLS to the engines of a ModelDeployment", _REMOVE)
_API_KEY: Final = _Conflict(
    "gateways and probes send the engine no key, so it refuses every request",
    "remove it: gateways check the keys of clients, and a NetworkPolicy protects engines",
)
_PREFIX_CACHE: Final = _Conflict("without its prefix cache, routing by prefix gains nothing", _REMOVE)
_NODES: Final = _Conflict("`parallelism.nodes` of a pool sets it", _REMOVE)
_FETCH: Final = _Conflict(
    "the engine then fetches any URL that a request names, also inside the cluster",
    "remove it, or restrict the pods' egress by a NetworkPolicy",
)
_SPLIT: Final = _Conflict(
    "`parallelism` of a pool sets it", "remove it, and write `parallelism: {tensor: NUMBER}` or `{pipeline: NUMBER}`"
)
_MODEL: Final = _Conflict("`spec.model` names the weights", "remove it, and write the source in `model.uri`")
_REVISION: Final = _Conflict(
    "`model.revision` says something else",
    _REMOVE,
    lambda spec, value: spec.model.revision not in (None, value),
)
_EVENTS: Final = _Conflict(
    "Fairlead sets it; with other settings, the index learns no block of this engine",
    "remove it, or write `kvCache: {events: false}`",
    lambda spec, value: spec.kv_cache.events,
)
_ADAPTERS: Final = _Conflict(
    "`spec.adapters` sets it", "remove it, and set `adapters`", lambda spec, value: spec.adapters is not None
)
_METRICS: Final = _Conflict("gateways and the autoscaler read the load from the engine's metrics", _REMOVE)
_CONFIG: Final = _Conflict(
    "it replaces the file by which Fairlead turns the metrics on", "write `return_perf_metrics: true` in your file, too"
)
_ROLE: Final = _Conflict("Fairlead does not split prefill from decode with TensorRT-LLM", _REMOVE)
_BOTH: Final[Mapping[str, _Conflict]] = {
    **dict.fromkeys(("--host", "--port"), _ADDRESS),
    **dict.fromkeys(("--ssl-keyfile", "--ssl-certfile"), _TLS),
    "--api-key": _API_KEY,
    **dict.fromkeys(("--nnodes", "--node-rank"), _NODES),
    "--revision": _REVISION,
    "--kv-events-config": _EVENTS,
    **dict.fromkeys(("--enable-lora", "--max-lora-rank"), _ADAPTERS),
    "--tensor-parallel-size": _size("tensor"),
    "--pipeline-parallel-size": _size("pipeline"),
    "--data-parallel-size": _size("data"),
    "--model": _MODEL,
}
_OF_ALL_POOLS: Final[Mapping[str, _Conflict]] = {
    "--served-model-name": _Conflict(_WHOLE_MODEL, "remove it; see `model.servedNames`"),
    **dict.fromkeys(
        ("--scheduling-policy", "--enable-priority-scheduling"), _Conflict(_WHOLE_MODEL, "write it in `engine.args`")
    ),
}
"""Arguments that are no pool's own."""
CONFLICTS_BY_ENGINE: Final[Mapping[EngineType, Mapping[str, _Conflict]]] = {
    EngineType.VLLM: {
        **_BOTH,
        "-tp": _size("tensor"),
        "-pp": _size("pipeline"),
        "-dp": _size("data"),
        "--uds": _ADDRESS,
        **dict.fromkeys(("--headless", "--master-addr", "--master-port"), _NODES),
        "--max-loras": _ADAPTERS,
        "--disable-log-stats": _METRICS,
        "--no-enable-prefix-caching": _PREFIX_CACHE,
        "--enable-prefix-caching": _Conflict(
            _PREFIX_CACHE.message, _REMOVE, lambda spec, value: value is not None and value.lower() in _OFF
        ),
        "--prefix-caching-hash-algo": _Conflict(
            "engines that share KV compute SHA-256, and vLLM 0.32 does not start with `builtin`",
            _REMOVE,
            lambda spec, value: value != "sha256",
        ),
        "--kv-transfer-config": _Conflict(
            "`spec.kvCache` sets it",
            "remove it, or remove `transfer` and `offload`",
            lambda spec, value: spec.kv_cache.transfer is not Transfer.NONE or spec.kv_cache.offload is not None,
        ),
    },
    EngineType.SGLANG: {
        **_BOTH,
        **dict.fromkeys(("--tp-size", "--tp"), _size("tensor")),
        **dict.fromkeys(("--pp-size", "--pp"), _size("pipeline")),
        **dict.fromkeys(("--dp-size", "--dp"), _size("data")),
        "--dist-init-addr": _NODES,
        "--model-path": _MODEL,
        "--max-loras-per-batch": _ADAPTERS,
        "--disable-radix-cache": _PREFIX_CACHE,
    },
    EngineType.LLAMA_CPP: {
        **dict.fromkeys(("--host", "--port", "--api-prefix"), _ADDRESS),
        **dict.fromkeys(("--ssl-key-file", "--ssl-cert-file"), _TLS),
        **dict.fromkeys(("--api-key", "--api-key-file"), _API_KEY),
        **dict.fromkeys(("-m", "--model", "--model-url", "-hf", "--hf-repo", "--models-dir"), _MODEL),
        **dict.fromkeys(("-sm", "--split-mode"), _SPLIT),
        "--no-cache-prompt": _PREFIX_CACHE,
        **dict.fromkeys(("-mm", "--mmproj", "--mmproj-url", "--mmproj-auto"), _FETCH),
        "--slots": _Conflict("/slots shows the prompts of all clients", _REMOVE),
        "--log-prompts-dir": _Conflict("it writes the prompts of all clients to files", _REMOVE),
        **dict.fromkeys(
            ("--tools", "--agent"),
            _Conflict("the tools run commands and write files in the engine's container", _REMOVE),
        ),
    },
    EngineType.TRTLLM: {
        **dict.fromkeys(("--host", "--port", "--grpc", "--report-addr"), _ADDRESS),
        "--served-model-name": _Conflict(
            "gateways use the name that Fairlead sets", "remove it; see `model.servedNames`"
        ),
        **dict.fromkeys(("--revision", "--hf-revision"), _REVISION),
        **dict.fromkeys(("--tp-size", "--tensor-parallel-size"), _size("tensor")),
        **dict.fromkeys(("--pp-size", "--pipeline-parallel-size"), _size("pipeline")),
        **dict.fromkeys(("--config", "--extra-llm-api-options"), _CONFIG),
        **dict.fromkeys(("--server-role", "--disagg-cluster-uri", "--metadata-server-config-file"), _ROLE),
        "--allow-request-chat-template": _Conflict("clients then run templates of their own in the engine", _REMOVE),
    },
}


def lint_engine_arguments(spec: ModelDeploymentSpec) -> Iterator[LintNote]:
    """Yields notes on arguments; none for engines whose arguments Fairlead does not know."""
    yield from _lint_arguments(spec, spec.engine.args, ("spec", "engine", "args"), {})
    for index, pool in enumerate(spec.pools):
        yield from _lint_arguments(spec, pool.args, ("spec", "pools", index, "args"), _OF_ALL_POOLS)


def _lint_arguments(
    spec: ModelDeploymentSpec, args: Sequence[str], path: tuple[str | int, ...], more: Mapping[str, _Conflict]
) -> Iterator[LintNote]:
    """Yields notes on one list. ``more``: conflicts of the place where it is."""
    known = CONFLICTS_BY_ENGINE.get(spec.engine.type)
    conflicts = {} if known is None else {**more, **known}
    is_checked = is_checked_image(spec.engine.type, spec.engine.image)
    for position, name, value in _parse_arguments(args):
        place, conflict = (*path, position), conflicts.get(name)
        if conflict is not None and conflict.is_wrong(spec, value):
            yield LintNote(place, f"{name}: {conflict.message}", conflict.fix)
        elif is_checked and (problem := flag_problem(spec.engine.type, name, value)):
            yield LintNote(place, f"{problem}, so the engine does not start", _REMOVE)


def _parse_arguments(args: Sequence[str]) -> Iterator[tuple[int, str, str | None]]:
    """Yields index, name and value of the flags among arguments.

    A flag is `--name=value`, or `--name` with a value in the next argument. Underscores in names
    become hyphens.
    """
    for index, text in enumerate(args):
        if not text.startswith("-"):
            continue
        name, sign, value = text.partition("=")
        following = args[index + 1] if index + 1 < len(args) else "-"
        given = value if sign else None if following.startswith("-") else following
        yield index, name.replace("_", "-"), given


def lint_spec(
    spec: ModelDeploymentSpec,
    profile: Callable[[Pool], EngineProfile | None],
    classes: Mapping[str, AcceleratorClass],
) -> Iterator[LintNote]:
    """Yields notes on one spec. They are about:

    - arguments of engines that Fairlead sets itself, that break routing, or that are unknown;
    - images that are not built for the accelerator;
    - replica bounds that the autoscaler ignores, and pools that it does not scale;
    - an SLO that no number of instances can meet, or a missing SLO;
    - sleep and scale-to-zero settings that have no effect.

    profile: returns the engine profile of a pool.
    classes: AcceleratorClasses by name.
    """
    yield from lint_engine_arguments(spec)
    yield from _lint_images(spec, classes)
    if spec.autoscaling.mode is not ScalingMode.AUTO:
        yield from _lint_disabled_mode(spec)
        return
    if spec.replicas is not None:
        yield LintNote(
            ("spec", "replicas"),
            f"it fixes the number at {spec.desired_instances(spec.pools[0])}, so `autoscaling.mode: Auto` changes nothing",
            "remove it, or write `mode: Advise` if only advice is wanted",
        )
        return
    for index, pool in enumerate(spec.pools):
        if not pool.is_scalable and not _has_schedule(spec, pool):
            why = "it has no maxReplicas" if pool.max_replicas is None else "its maxReplicas is its minReplicas"
            yield LintNote(
                ("spec", "pools", index, "maxReplicas"),
                f"{why}, so `autoscaling.mode: Auto` leaves this pool at {pool.min_replicas}",
                f"give it a maxReplicas above its minReplicas, for example `maxReplicas: {2 * pool.min_replicas + 2}`, "
                "or leave it if that is meant",
            )
    total_min = sum(pool.min_replicas for pool in spec.pools)
    if spec.autoscaling.max_replicas is not None and total_min > spec.autoscaling.max_replicas:
        yield LintNote(
            ("spec", "autoscaling", "maxReplicas"),
            f"the pools' minReplicas add up to {total_min}, and the autoscaler never goes below that",
            "raise it, or lower the pools' minReplicas",
        )
    yield from _lint_schedules(spec)
    yield from _lint_unused_tiers(spec)
    yield from _lint_slo(spec, profile)


def access_modes(objects: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Returns the access modes of the volume claims among objects, by namespace and name."""
    found: dict[str, dict[str, list[str]]] = {}
    for one in objects:
        metadata, spec = one.get("metadata"), one.get("spec")
        if one.get("kind") != "PersistentVolumeClaim" or not isinstance(metadata, dict) or not isinstance(spec, dict):
            continue
        modes = spec.get("accessModes")
        if isinstance(modes, list):
            claims = found.setdefault(str(metadata.get("namespace") or "default"), {})
            claims[str(metadata.get("name"))] = list(map(str, modes))
    return found


def lint_claims(spec: ModelDeploymentSpec, claims: Mapping[str, Sequence[str]]) -> Iterator[LintNote]:
    """Yields a note on each claim that the pods of a model share, and that only one node may mount.

    claims: access modes of those in the model's namespace, by name.
    """
    pods = sum(max(pool.min_replicas, pool.max_replicas or 0) * pool.parallelism.nodes for pool in spec.pools)
    if pods < 2:
        return
    for path, claim in _claims_of(spec):
        modes = claims.get(claim)
        if modes is not None and all(mode.startswith("ReadWriteOnce") for mode in modes):
            yield LintNote(
                path,
                f"up to {pods} pods mount the claim {claim}, whose access mode {', '.join(modes)} is for one node",
                "give the claim ReadWriteMany or ReadOnlyMany, or take a source that each pod loads itself",
            )


def _claims_of(spec: ModelDeploymentSpec) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yields the path and the name of each claim that a model's pods mount."""
    if spec.model.uri.startswith("pvc:"):
        yield ("spec", "model", "uri"), spec.model.location.partition("/")[0]
    if spec.model.cache is not None and spec.model.cache.claim_name is not None:
        yield ("spec", "model", "cache", "claimName"), spec.model.cache.claim_name
    for index, name in enumerate(() if spec.adapters is None else spec.adapters.claim_names):
        yield ("spec", "adapters", "claimNames", index), name
    for index, pool in enumerate(spec.pools):
        volumes = None if pool.template is None else pool.template.spec.get("volumes")
        for position, volume in enumerate(volumes if isinstance(volumes, list) else ()):
            source = volume.get("persistentVolumeClaim") if isinstance(volume, dict) else None
            if isinstance(source, dict) and isinstance(source.get("claimName"), str):
                path = ("spec", "pools", index, "template", "spec", "volumes", position)
                yield path, source["claimName"]


def lint_tenant(tenant: ModelTenant) -> Iterator[LintNote]:
    """Yields notes on a tenant that nothing identifies, and on limits that apply to no request."""
    spec = tenant.spec
    if not spec.keys and not spec.subjects:
        yield LintNote(("spec",), "it has neither keys nor subjects, so no request is this tenant's", "add one of them")
    converted = tenant.to_tenant()
    for index, limit in enumerate(spec.limits):
        if limit.model is not None and not converted.may_use(limit.model):
            yield LintNote(
                ("spec", "limits", index, "model"),
                "the tenant may use no model of this name; only an adapter of one that it may use could have it",
                "add the model to `models`, or remove the limit",
            )
        if limit.key is not None and all(key.name != limit.key for key in spec.keys):
            yield LintNote(
                ("spec", "limits", index, "key"),
                "the tenant has no key of this name, so the limit changes nothing",
                "write the name of one of its keys, or remove the limit",
            )


def _lint_images(spec: ModelDeploymentSpec, classes: Mapping[str, AcceleratorClass]) -> Iterator[LintNote]:
    """Yields notes on pools that would run the chart's image on devices of other vendors."""
    if spec.engine.type not in CHECKED_ENGINES or spec.engine.image is not None:
        return
    for index, pool in enumerate(spec.pools):
        found = classes.get(pool.accelerator_class_name or "")
        resource = None if found is None else found.spec.resource
        containers = () if pool.template is None else pool.template.spec.get("containers") or ()
        has_image = any(
            isinstance(one, dict) and one.get("name") == "engine" and one.get("image") for one in containers
        )
        if found is None or has_image or (resource or "").startswith(NVIDIA_PREFIX):
            continue
        what = f"is for {resource}" if resource else "requests no device"
        yield LintNote(
            ("spec", "pools", index, "acceleratorClassName"),
            f"the chart's image of {spec.engine.type.value} is built for NVIDIA's GPUs, and {pool.accelerator_class_name} {what}",
            "write an image for it into `engine.image`, or leave it if your chart's `engines.images` is one",
        )


def _lint_disabled_mode(spec: ModelDeploymentSpec) -> Iterator[LintNote]:
    scaling = spec.autoscaling
    if spec.can_sleep:
        yield LintNote(
            ("spec", "autoscaling", "sleep"),
            "no instance is put to sleep while `autoscaling.mode` is not Auto; engines only start with sleep mode",
            "write `mode: Auto`, or leave it if that comes later",
        )
    elif scaling.mode is ScalingMode.DISABLED and "mode" not in scaling.model_fields_set and scaling.model_fields_set:
        yield LintNote(
            ("spec", "autoscaling"),
            "these settings have no effect: `mode` is Disabled if it is left out",
            "write `mode: Auto`, or `mode: Advise` if only advice is wanted",
        )
    elif scaling.mode is ScalingMode.DISABLED and "mode" not in scaling.model_fields_set and spec.replicas is None:
        yield from _lint_unused_bounds(spec)
        yield from lint_stopped_pools(spec)


def lint_stopped_pools(spec: ModelDeploymentSpec) -> Iterator[LintNote]:
    """Yields notes on pools that have no instance, in a model that nothing scales."""
    if spec.autoscaling.mode is not ScalingMode.DISABLED or spec.replicas is not None or spec.is_external:
        return
    for index, pool in enumerate(spec.pools):
        if pool.min_replicas == 0:
            yield LintNote(
                ("spec", "pools", index, "minReplicas"),
                "no instance runs, and a request starts none: `autoscaling.mode` is Disabled if it is left out",
                "write `minReplicas: 1`, or a maxReplicas and `autoscaling: {mode: Auto}`, or `mode: Disabled` if "
                "something else scales it (KEDA can, a HorizontalPodAutoscaler does nothing at zero)",
            )


def _lint_unused_bounds(spec: ModelDeploymentSpec) -> Iterator[LintNote]:
    """Yields notes on pools with room to scale in a model without autoscaling."""
    for index, pool in enumerate(spec.pools):
        if pool.is_scalable:
            yield LintNote(
                ("spec", "pools", index, "maxReplicas"),
                f"the pool stays at {pool.min_replicas}: `autoscaling.mode` is Disabled if it is left out",
                "write `autoscaling: {mode: Auto}`, or `mode: Disabled` if something else scales it",
            )


def _lint_schedules(spec: ModelDeploymentSpec) -> Iterator[LintNote]:
    """Yields notes on schedules that raise the `maxReplicas` of a pool without naming it."""
    for index, schedule in enumerate(spec.autoscaling.schedules):
        if schedule.min_replicas is None or schedule.max_replicas is not None:
            continue
        for pool in spec.pools:
            is_raised = pool.max_replicas is not None and schedule.min_replicas > pool.max_replicas
            if schedule.pool in (None, pool.name) and is_raised:
                yield LintNote(
                    ("spec", "autoscaling", "schedules", index, "minReplicas"),
                    f"the pool {pool.name} has a maxReplicas of {pool.max_replicas}, which this raises in these hours",
                    f"lower it, or write `maxReplicas: {schedule.min_replicas}` into the schedule if that is meant",
                )


def _lint_unused_tiers(spec: ModelDeploymentSpec) -> Iterator[LintNote]:
    """Yields notes on sleep and scale-to-zero settings without effect."""
    scaling = spec.autoscaling
    lowest = min(_min_instances(spec, pool) for pool in spec.pools)
    if "zero" in scaling.model_fields_set and lowest > 0:
        yield LintNote(
            ("spec", "autoscaling", "zero"),
            f"no pool may have fewer than {lowest}, so none goes to zero",
            "write `minReplicas: 0` in a pool, or remove it",
        )
    lowest_max = min(pool.max_replicas or pool.min_replicas for pool in spec.pools)
    if scaling.sleep is not None and scaling.sleep.min >= lowest_max:
        yield LintNote(
            ("spec", "autoscaling", "sleep", "min"),
            f"a pool has at most {lowest_max} instances, active ones included, so fewer sleep while one is active",
            "lower it, or raise the pools' maxReplicas",
        )


def _min_instances(spec: ModelDeploymentSpec, pool: Pool) -> int:
    """Returns the smallest of `minReplicas` and the bounds in the pool's schedules."""
    schedules = [schedule for schedule in spec.autoscaling.schedules if schedule.pool in (None, pool.name)]
    bounds = [
        bound for schedule in schedules for bound in (schedule.min_replicas, schedule.max_replicas) if bound is not None
    ]
    return min([pool.min_replicas, *bounds])


def _lint_slo(spec: ModelDeploymentSpec, profile: Callable[[Pool], EngineProfile | None]) -> Iterator[LintNote]:
    targets = spec.slo.to_targets()
    if targets.ttft_seconds is None and targets.itl_seconds is None:
        yield LintNote(
            ("spec", "autoscaling", "mode"),
            "there is no latency target, so pools are sized by what an engine's memory and batch hold, however slow that is",
            "add latency targets, for example `slo: {ttft: 2s, tpot: 100ms}`",
        )
    for pool in spec.pools:
        engine_profile = profile(pool)
        if engine_profile is None:
            continue
        step = engine_profile.step_time(computed=1, sequences=1, resident=0)
        limits = {
            "ttft": None if pool.role is PoolRole.DECODE else targets.ttft_seconds,
            "tpot": None if pool.role is PoolRole.PREFILL else targets.itl_seconds,
        }
        for name, limit in limits.items():
            if limit is not None and limit < step:
                yield LintNote(
                    ("spec", "slo", name),
                    f"a step of an engine on {pool.accelerator_class_name} takes {format_duration(step)} by its profile: "
                    "no number of instances meets this target",
                    "relax it, or take another accelerator",
                )


def _has_schedule(spec: ModelDeploymentSpec, pool: Pool) -> bool:
    return any(schedule.pool in (None, pool.name) for schedule in spec.autoscaling.schedules)
