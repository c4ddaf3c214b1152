"""A ModelDeployment while a conversion puts it together."""

import json
import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd, lcm
from typing import Any, Final

from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.spec.engine import EngineType
from fairlead.api.spec.route.spec import MAX_WEIGHT
from fairlead.api.v1alpha1 import API_VERSION
from fairlead.distribution import ADDRESSES
from fairlead.errors import BadInput
from fairlead.manifests.known_flags import checked_version, image_version
from fairlead.manifests.lint import NVIDIA_PREFIX
from fairlead.names import EXTERNAL_SUFFIX, shorten_name
from fairlead_cli.migration.command_line import split_shared
from fairlead_cli.migration.drafts import Devices, MigrationOptions, ModelDraft, NamedDraft, PoolDraft
from fairlead_cli.migration.field_reader import FieldReader, Outcome
from fairlead_cli.migration.references import move_cache, rewrite_selectors

_ACCELERATORS: Final = (
    (re.compile(r"h100", re.IGNORECASE), "nvidia-h100"),
    (re.compile(r"(^|[^a-z])h200", re.IGNORECASE), "nvidia-h200"),
    (re.compile(r"(^|[^a-z])b200", re.IGNORECASE), "nvidia-b200"),
    (re.compile(r"mi300x", re.IGNORECASE), "amd-mi300x"),
    (re.compile(r"mi325x", re.IGNORECASE), "amd-mi325x"),
    (re.compile(r"mi355x", re.IGNORECASE), "amd-mi355x"),
    (re.compile(r"tpu-(v5-lite|v5e)"), "google-tpu-v5e"),
    (re.compile(r"tpu-v6e"), "google-tpu-v6e"),
    (re.compile(r"gaudi ?2", re.IGNORECASE), "intel-gaudi2"),
    (re.compile(r"gaudi ?3", re.IGNORECASE), "intel-gaudi3"),
    (re.compile(r"a100", re.IGNORECASE), "nvidia-a100"),
    (re.compile(r"(^|[^a-z0-9])l4($|[^0-9a-z])", re.IGNORECASE), "nvidia-l4"),
    (re.compile(r"910b", re.IGNORECASE), "npu-910b4"),
)
_SHARED: Final = "-SHARED"
"""End of a product label of NVIDIA's devices that several pods share by time."""
_CPU_SIGN: Final = re.compile(
    r"vllm-cpu|vllm-openai-cpu|cpu-release|llm-d-cpu|--device[= ]cpu|VLLM_CPU_", re.IGNORECASE
)
OLDEST_VLLM: Final = "0.11.0"
"""The first vLLM that takes each flag that Fairlead adds for an engine on one node."""
_SCHEMES: Final = ("hf://", "s3://", "gs://", "oci://", "pvc:", "file://")
_NEEDS_KEY: Final = (
    "its engines refuse requests without --api-key, and a ModelDeployment holds no key: remove the key from the "
    "engines, or keep it and describe them in a fleet file"
)
_ENGINE_NAMES: Final = {"VLLM": "vLLM", "SGLang": "SGLang"}
_TRANSFER_FLAG: Final = "--kv-transfer-config"

SCALES_FOR_TARGETS: Final = "Fairlead scales for latency targets: set spec.slo"
BY_CONVERSATION: Final = "shares are of conversations, not of requests: a conversation stays with its model"
_ROUTE_SUFFIX: Final = "-route"


def assemble(draft: ModelDraft, options: MigrationOptions) -> dict[str, Any]:
    """Returns the ModelDeployment. Raises BadInput for what a manifest leaves open."""
    external = options.external or any(pool.endpoints for pool in draft.pools)
    label = dns_label(draft.name)
    if label != draft.name:
        draft.reader.note("", f"the model {draft.name!r} is called {label}, since names are DNS labels")
    name = manifest_name(draft.name, options)
    spec = _external_spec(draft, name, options) if external else _spec(draft, name, options)
    copied = json.loads(json.dumps(spec))  # pools share no objects, which YAML writes as aliases
    return build_manifest("ModelDeployment", name, draft, copied)


def build_manifest(kind: str, name: str, draft: NamedDraft, spec: dict[str, Any]) -> dict[str, Any]:
    """Returns an object with the metadata of a draft."""
    metadata = {"namespace": draft.namespace, "labels": draft.labels, "annotations": draft.annotations}
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name, **without_empty(metadata)},
        "spec": spec,
    }


def dns_label(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def manifest_name(name: str, options: MigrationOptions) -> str:
    label = dns_label(name)
    return shorten_name(f"{label}{EXTERNAL_SUFFIX}" if options.external else label)


def model_uri(text: str, reader: FieldReader, field_name: str) -> tuple[str, str]:
    """Returns a source of weights as Fairlead writes it, and the revision in it, if any."""
    if text.startswith("pvc://"):
        return f"pvc:{text.removeprefix('pvc://')}", ""
    if text.startswith("hf://"):
        repository, _, revision = text.removeprefix("hf://").partition(":")
        return f"hf://{repository}", revision
    if text.startswith(_SCHEMES):
        return text, ""
    if text.startswith("/"):
        return f"file://{text}", ""
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text):
        return f"hf://{text}", ""
    raise reader.error(field_name, f"Fairlead does not load weights from {text!r}", "use hf://, s3://, gs:// or pvc:")


def metadata_of(reader: FieldReader, *, own_prefixes: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns name, namespace, labels and annotations of an object, as fields of a ModelDraft.

    own_prefixes: labels and annotations of the other system, which its controllers read.
    """
    metadata = reader.section("metadata")
    metadata.skip("resourceVersion", "uid", "generation", "creationTimestamp", "managedFields", "selfLink")
    kept = {}
    for kind in ("labels", "annotations"):
        values = metadata.section(kind)
        prefixes = (*own_prefixes, "kubectl.kubernetes.io/", "app.kubernetes.io/", "helm.sh/", "meta.helm.sh/")
        own = [name for name in values.names() if name.startswith(prefixes)]
        values.skip(*own)
        foreign = [name for name in own if not name.startswith("kubectl.kubernetes.io/")]
        if foreign:
            reason = f"{', '.join(foreign)}: the other system or its installer reads them"
            metadata.note(kind, reason, Outcome.DROPPED)
        kept[kind] = {name: values.text(name) for name in values.names() if name not in own}
    return {"name": metadata.text("name"), "namespace": metadata.text("namespace"), **kept}


def read_helper(document: FieldReader, *, is_used: bool) -> None:
    """Reads the metadata of an object that only adds to models; notes it when none names it."""
    document.section("metadata").skip("name", "namespace", "resourceVersion", "uid", "generation", "creationTimestamp")
    if not is_used:
        document.drop_all("no model among the files names it")


def _spec(draft: ModelDraft, name: str, options: MigrationOptions) -> dict[str, Any]:
    first = draft.pools[0]
    flags = first.engine.flags
    for pool in draft.pools:
        rewrite_selectors(pool, name)
        if draft.uri.startswith("hf://") and "cache" not in draft.model and (cache := move_cache(pool)):
            draft.model["cache"] = cache
    spec: dict[str, Any] = {"model": _model(draft, name), "engine": _engine(draft)}
    spec["pools"] = [_pool(pool, draft, options) for pool in draft.pools]
    _note_image(first, spec["pools"][0]["acceleratorClassName"])
    kv_cache = _kv_cache(draft)
    if kv_cache:
        spec["kvCache"] = kv_cache
    if flags.adapters is not None:
        spec["adapters"] = flags.adapters
    return spec | without_empty(draft.spec)


def _external_spec(draft: ModelDraft, name: str, options: MigrationOptions) -> dict[str, Any]:
    serving = [pool for pool in draft.pools if pool.role != "Prefill"]
    if len(serving) < len(draft.pools):
        draft.reader.note("", "requests go to the decode pods alone; the prefill pods get none", Outcome.CHANGED)
    if options.external and any(pool.engine.needs_key for pool in serving):
        draft.reader.note("", _NEEDS_KEY, Outcome.REQUIRED)
    pools = []
    for pool in serving:
        entry: dict[str, Any] = {"name": "main" if pool.role == "Decode" else pool.name}
        accelerator = options.accelerator or _class_of_hints(pool.devices)[0]
        if accelerator and not draft.is_api:
            entry["acceleratorClassName"] = accelerator
        if pool.endpoints:
            entry["endpoints"] = [_endpoint(url, pool.secrets.get(url)) for url in pool.endpoints]
        else:
            entry["selector"] = {"matchLabels": pool.selector, "port": pool.port}
        pools.append(entry)
    model = {"uri": draft.uri, "servedNames": _served_names(draft, name)}
    engine = {"type": "OpenAI" if draft.is_api else "External"}
    spec = {"model": without_empty(model), "engine": engine, "pools": pools}
    return spec | without_empty({name: draft.spec.get(name) for name in ("routing", "price")})


def _endpoint(url: str, secret: str | None) -> dict[str, Any]:
    return {"url": url} if secret is None else {"url": url, "tokenSecretKeyRef": {"name": secret, "key": "token"}}


def _model(draft: ModelDraft, name: str) -> dict[str, Any]:
    revision = draft.pools[0].engine.flags.revision
    fields = {"uri": draft.uri, "revision": revision if draft.uri.startswith("hf://") else ""}
    return without_empty({**fields, **draft.model, "servedNames": _served_names(draft, name)})


def _served_names(draft: ModelDraft, name: str) -> list[str]:
    names = draft.served_names or draft.pools[0].engine.flags.served_names or [draft.name]
    return [] if names == [name] else list(dict.fromkeys(names))


def _engine(draft: ModelDraft) -> dict[str, Any]:
    engine = draft.pools[0].engine
    for pool in draft.pools[1:]:
        variables = [variable for variable in pool.engine.env if variable not in engine.env]
        if variables:
            pool.container["env"] = variables
        if pool.engine.image != engine.image:
            pool.container["image"] = pool.engine.image
    every = [pool.engine.flags for pool in draft.pools]
    words, own = split_shared([one.kept if _hands_over(draft) else one.kept + one.transfer_words for one in every])
    for pool, args in zip(draft.pools, own, strict=True):
        pool.args = args
    return {"type": engine.type} | without_empty(
        {
            "image": engine.image,
            "args": words,
            "env": engine.env,
            "imagePullSecrets": [{"name": name} for name in engine.pull_secrets],
        }
    )


def _note_image(pool: PoolDraft, accelerator: str) -> None:
    """Notes an engine of another version than the one that Fairlead's flags are checked against."""
    engine = pool.engine
    checked = checked_version(EngineType(engine.type))
    if checked is None:
        return
    if not engine.image:
        pool.reader.note(
            "", f"it names no image: the chart's runs, engines.images.{engine.type.lower()}, which holds {checked}"
        )
        known = builtin_accelerators().get(accelerator)
        if known is not None and not (known.spec.resource or "").startswith(NVIDIA_PREFIX):
            reason = f"the chart's image is built for NVIDIA's GPUs: write an image for {accelerator} into engine.image"
            pool.reader.note("", reason, Outcome.REQUIRED)
        return
    version = image_version(engine.image)
    if version == checked:
        return
    reason = f"the flags that Fairlead adds are checked against {_ENGINE_NAMES[engine.type]} {checked}"
    if not version:
        pool.reader.note("", f"{reason}; {engine.image} does not name the version of its engine")
    elif engine.type == "VLLM" and _numbers(version) < _numbers(OLDEST_VLLM):
        pool.reader.note(
            "",
            f"vLLM {version} refuses --allowed-media-domains, which Fairlead adds: use {OLDEST_VLLM} or newer; {reason}",
            Outcome.REQUIRED,
        )
    else:
        pool.reader.note("", f"{engine.image} holds {version}; {reason}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _pool(pool: PoolDraft, draft: ModelDraft, options: MigrationOptions) -> dict[str, Any]:
    accelerator = _accelerator(pool, options)
    parallelism = dict(pool.engine.flags.parallelism)
    if pool.nodes > 1:
        parallelism["nodes"] = pool.nodes
    count, ranks = pool.devices.count, count_ranks(parallelism)
    if count and count * pool.nodes != ranks:
        devices = f"{count} device{'' if count == 1 else 's'}"
        pool.reader.note("", f"a pod requested {devices}; with Fairlead an instance gets {ranks}, one for each rank")
    entry: dict[str, Any] = {"name": pool.name, "role": pool.role} if len(draft.pools) > 1 else {}
    entry |= {"acceleratorClassName": accelerator, "minReplicas": pool.min_replicas}
    if pool.max_replicas is not None:
        entry["maxReplicas"] = pool.max_replicas
    spec = dict(pool.pod)
    if pool.container:
        spec["containers"] = [{"name": "engine", **pool.container}, *spec.get("containers", [])]
    template = without_empty({"metadata": without_empty(pool.metadata), "spec": spec})
    return entry | without_empty({"parallelism": parallelism, "args": pool.args, "template": template})


def _unknown_accelerator(pool: PoolDraft) -> BadInput:
    devices = pool.devices
    labels = ", ".join(hint for hint in devices.hints if hint != devices.resource)
    if devices.slice:
        message = f"a pod gets a part of a device, {devices.slice}, and built-in AcceleratorClasses are for whole ones"
    elif labels:
        message = f"no built-in AcceleratorClass is for {' and '.join(filter(None, (labels, devices.resource)))}"
    elif devices.signs and not devices.count:
        message = f"the manifest requests no device, but has {', '.join(dict.fromkeys(devices.signs))}"
    else:
        message = "the manifest does not say which accelerator its engines use"
    hint = (
        f"give --accelerator with one of {', '.join(sorted(builtin_accelerators()))}, or with an AcceleratorClass of "
        'your own, whose file you give, too: see "Describe your GPU" in the documentation, '
        f"{ADDRESSES.documentation_page('getting-started/kubernetes-gpu.html')}"
    )
    return BadInput(message, field=pool.reader.place, hint=hint)


def read_sizes(sizes: FieldReader, names: Iterable[str], pool: PoolDraft) -> None:
    pool.engine.flags.parallelism |= {name: size for name in names if (size := sizes.number(name)) > 1}


def count_ranks(parallelism: Mapping[str, int]) -> int:
    return math.prod(parallelism.get(name, 1) for name in ("tensor", "pipeline", "data"))


def _kv_cache(draft: ModelDraft) -> dict[str, Any]:
    flags = draft.pools[0].engine.flags
    kv_cache: dict[str, Any] = dict(draft.spec.pop("kvCache", {}))
    if flags.offload and (_hands_over(draft) or not flags.transfer_words):
        kv_cache.setdefault("offload", flags.offload)
    if _hands_over(draft):
        for pool in draft.pools:
            if unknown := next((word for word in pool.engine.flags.kept if word.startswith(_TRANSFER_FLAG)), None):
                message = f"a ModelDeployment cannot say the connectors of {unknown}, which differ between the pools"
                raise BadInput(message, field=pool.reader.place, hint="write kvCache.transfer by hand")
        found = next((pool.engine.flags.transfer for pool in draft.pools if pool.engine.flags.transfer), None)
        if found is None:
            draft.reader.note("", "the transfer of KV is NIXL, since the manifest names no other")
        kv_cache["transfer"] = found or "NIXL"
    return kv_cache


def _hands_over(draft: ModelDraft) -> bool:
    return any(pool.role == "Prefill" for pool in draft.pools)


def _accelerator(pool: PoolDraft, options: MigrationOptions) -> str:
    """Returns the AcceleratorClass of a pool, and notes what it was chosen by.

    Raises BadInput where the manifest does not say it, or says something else.
    """
    devices, known = pool.devices, builtin_accelerators()
    if options.accelerator is not None:
        _note_given_class(pool, options.accelerator)
        return options.accelerator
    found, hint = _class_of_hints(devices)
    resource = known[found].spec.resource if found else None
    if found and not devices.slice and ("/" not in devices.resource or devices.resource == resource):
        shared = "; its profile is that of a whole device, which several pods share" if hint.endswith(_SHARED) else ""
        pool.reader.note("", f"acceleratorClassName is {found}, because of {hint}{shared}")
        return found
    if found or devices.slice or devices.count or devices.resource or devices.unknown:
        raise _unknown_accelerator(pool)
    engine = pool.engine
    texts = [engine.image, *engine.flags.kept, *(str(variable["name"]) for variable in engine.env)]
    if devices.is_cpu or _CPU_SIGN.search(" ".join(texts)):
        return "cpu"
    if devices.signs:
        raise _unknown_accelerator(pool)
    reason = "the manifest requests no device, so the pool is on class cpu: give --accelerator if its engines use one"
    pool.reader.note("", reason, Outcome.REQUIRED)
    return "cpu"


def _note_given_class(pool: PoolDraft, accelerator: str) -> None:
    """Notes a resource of the manifest that pods of the class do not request."""
    devices, known = pool.devices, builtin_accelerators().get(accelerator)
    wanted = devices.slice or (devices.resource if "/" in devices.resource else "")
    if not wanted and devices.signs and not devices.count:
        wanted = ", ".join(dict.fromkeys(devices.signs))
    if not wanted or (known is not None and wanted == known.spec.resource):
        found, hint = _class_of_hints(devices)
        if known is not None and found not in ("", accelerator):
            reason = f"the pods were for {hint}, which is {found}: see that this pool belongs on {accelerator}"
            pool.reader.note("", reason, Outcome.REQUIRED)
        return
    gives = "" if known is None else f", and pods of {accelerator} request {known.spec.resource or 'no device'}"
    advice = f"see that the class {accelerator} has the resource that its nodes offer, or give this pool another class"
    reason = f"the pods had {wanted}{gives}: {advice}"
    pool.reader.note("", reason, Outcome.REQUIRED if known is not None else Outcome.CHANGED)


def _class_of_hints(devices: Devices) -> tuple[str, str]:
    """Returns the built-in class that a hint names, and the hint; empty texts without one."""
    for hint in devices.hints:
        for pattern, name in _ACCELERATORS:
            if pattern.search(hint):
                return name, hint
    return "", ""


def without_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in ("", None, [], {})}


def scaling_spec(pools: Iterable[PoolDraft], **further: Any) -> dict[str, Any]:
    """Returns `autoscaling` for pools that the other system scaled; empty if none can be scaled."""
    if not any(pool.max_replicas is not None and pool.max_replicas > pool.min_replicas for pool in pools):
        return {}
    return {"autoscaling": {"mode": "Auto", **without_empty(further)}}


def join_roles(drafts: Iterable[ModelDraft]) -> list[ModelDraft]:
    """Returns the models; a decode model takes the pools of the prefill model with its weights.

    Raises BadInput for a prefill model without a partner.
    """
    drafts = list(drafts)
    joined = [draft for draft in drafts if draft.pools[0].role != "Prefill" or len(draft.pools) > 1]
    for draft in drafts:
        pool = draft.pools[0]
        if pool.role != "Prefill" or len(draft.pools) > 1:
            continue
        key = (draft.namespace, draft.uri, "Decode")
        partner = next((one for one in joined if (one.namespace, one.uri, one.pools[0].role) == key), None)
        if partner is None:
            raise BadInput(f"there is no decode model with the weights of {draft.name}", field=pool.reader.place)
        partner.pools.append(pool)
        partner.name = partner.name.removesuffix("-decode")
        pool.reader.note("", f"{draft.name} is the prefill pool of {partner.name}")
    for draft in joined:
        if len(draft.pools) == 1:
            draft.pools[0].role, draft.pools[0].name = "Serve", "main"
    return joined


@dataclass(slots=True)
class RouteDraft(NamedDraft):
    """A route: its names, its targets and their weights.

    targets: name of a model to its weight.
    overrides: headers, with the targets of the requests that have them.
    fallbacks: the entries of `onFailure`.
    """

    targets: dict[str, int]
    overrides: list[tuple[dict[str, str], dict[str, int]]] = field(default_factory=list)
    fallbacks: list[dict[str, Any]] = field(default_factory=list)


def assemble_route(draft: RouteDraft, *, taken: Container[str] = ()) -> dict[str, Any]:
    """Returns the ModelRoute.

    taken: names of models, which a route cannot have.
    """
    label = dns_label(draft.name)
    name = shorten_name(f"{label}{_ROUTE_SUFFIX}" if label in taken else label)
    served = [served for served in dict.fromkeys(draft.served_names) if served != name]
    overrides = [{"headers": dict(headers), "targets": _targets(targets)} for headers, targets in draft.overrides]
    spec = {
        **without_empty({"servedNames": served}),
        "targets": _targets(draft.targets),
        **without_empty({"overrides": overrides, "onFailure": [dict(fallback) for fallback in draft.fallbacks]}),
    }
    return build_manifest("ModelRoute", name, draft, spec)


def whole_weights(shares: Sequence[Fraction]) -> list[int]:
    """Returns the smallest whole numbers with the ratios of the shares.

    A ratio that needs greater numbers than a route takes is rounded; a share above 0 stays above 0.
    """
    scale = lcm(*(share.denominator for share in shares))
    numbers = [int(share * scale) for share in shares]
    common = gcd(*numbers) or 1
    numbers = [number // common for number in numbers]
    greatest = max(numbers, default=0)
    if greatest <= MAX_WEIGHT:
        return numbers
    return [max(1, round(number * MAX_WEIGHT / greatest)) if number else 0 for number in numbers]


def _targets(weights: dict[str, int]) -> list[dict[str, Any]]:
    if len(weights) == 1 and all(weights.values()):
        return [{"model": model} for model in weights]
    return [{"model": model, "weight": weight} for model, weight in weights.items()]
