"""The manifest of an entry of the catalogue, with its memory as comments."""

from dataclasses import dataclass, replace
from typing import Any, Final

import yaml

from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.v1alpha1 import API_VERSION
from fairlead.roofline import AcceleratorFigures, roofline_profile
from fairlead_cli.catalog.architecture import count_parameters, model_cost
from fairlead_cli.catalog.entry import ENGINES, IMAGES, CatalogEntry
from fairlead_cli.catalog.memory_plan import MEMORY_SHARE, WORKSPACE_BYTES, MemoryPlan, frees_windows, gib

_WIDTH: Final = 120


@dataclass(frozen=True, slots=True)
class ManifestOptions:
    """Options of a manifest.

    name: of the ModelDeployment; None for that of the entry.
    image: of the engine; None for the image whose parsers the entry names.
    secret: name of a Secret with HF_TOKEN; None for a public repository.
    class_name: AcceleratorClass of the pool; None for that of the plan's device.
    """

    engine: str = "vllm"
    name: str | None = None
    image: str | None = None
    replicas: int = 1
    secret: str | None = None
    class_name: str | None = None


def render_with_class(
    entry: CatalogEntry, plan: MemoryPlan, options: ManifestOptions, figures: AcceleratorFigures
) -> str:
    """Returns an AcceleratorClass with the speed of the entry, and a ModelDeployment on it."""
    name = f"{plan.device.name}-{entry.name}"
    comments = f"# A roofline, not a measurement. Source: {figures.source}.\n"
    if figures.node_label:
        comments += f"# In a cluster with several kinds: nodeSelector: {{{figures.node_label}}}\n"
    written = _yaml(accelerator_class(entry, plan, figures, name))
    return f"{comments}{written}---\n{render_manifest(entry, plan, replace(options, class_name=name))}"


def render_manifest(entry: CatalogEntry, plan: MemoryPlan, options: ManifestOptions) -> str:
    """Returns a ModelDeployment as YAML, below comments on memory and sources."""
    comments = "\n".join(f"# {line}".rstrip() for line in _comments(entry, plan, options))
    return f"{comments}\n{_yaml(model_deployment(entry, plan, options))}"


def model_deployment(entry: CatalogEntry, plan: MemoryPlan, options: ManifestOptions) -> dict[str, Any]:
    """Returns the ModelDeployment of an entry on the devices of a plan."""
    model: dict[str, Any] = {"uri": f"hf://{entry.repository}", "servedNames": [entry.repository]}
    if options.secret is not None:
        model["credentials"] = {"secretRef": {"name": options.secret}}
    pool: dict[str, Any] = {
        "acceleratorClassName": options.class_name or plan.device.name,
        "minReplicas": options.replicas,
    }
    if plan.devices > 1:
        pool["parallelism"] = {"tensor": plan.devices}
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelDeployment",
        "metadata": {"name": options.name or entry.name},
        "spec": {
            "model": model,
            "engine": {
                "type": ENGINES[options.engine],
                "image": options.image or IMAGES[options.engine],
                "args": engine_arguments(entry, plan, options),
            },
            "pools": [pool],
        },
    }


def engine_arguments(entry: CatalogEntry, plan: MemoryPlan, options: ManifestOptions) -> list[str]:
    """Returns the engine's arguments: context, memory and parsers."""
    parsers = entry.parsers(options.engine)
    if options.engine == "vllm":
        arguments = [f"--max-model-len={plan.context}", f"--gpu-memory-utilization={MEMORY_SHARE}"]
        if parsers.tool_call_parser is not None:
            arguments.append("--enable-auto-tool-choice")
    else:
        # SGLang's share is that of weights and KV; its workspace is outside.
        share = plan.device.usable_bytes * 100 // plan.device.memory_bytes / 100
        arguments = [f"--context-length={plan.context}", f"--mem-fraction-static={share}"]
    if parsers.tool_call_parser is not None:
        arguments.append(f"--tool-call-parser={parsers.tool_call_parser}")
    if parsers.chat_template is not None and options.image is None:
        arguments.append(f"--chat-template={parsers.chat_template}")
    if parsers.reasoning_parser is not None:
        arguments.append(f"--reasoning-parser={parsers.reasoning_parser}")
    return [*arguments, *(["--trust-remote-code"] if entry.trust_remote_code else [])]


def accelerator_class(entry: CatalogEntry, plan: MemoryPlan, figures: AcceleratorFigures, name: str) -> dict[str, Any]:
    """Returns an AcceleratorClass with the speed of the entry on a plan's devices."""
    known = builtin_accelerators()[plan.device.name].spec
    profile = roofline_profile(
        name, model_cost(entry.config, plan.devices), figures, devices=plan.devices, kv_tokens=plan.kv_tokens
    )
    written = known.model_dump(by_alias=True, exclude_defaults=True, mode="json")
    written["profile"] = {
        "prefillTokenSeconds": _quantity(profile.prefill_token_seconds),
        "attentionSeconds": _quantity(profile.attention_seconds),
        "weightsSeconds": _quantity(profile.weights_seconds),
        "stepSeconds": _quantity(profile.step_seconds),
        "residentTokenSeconds": _quantity(profile.resident_token_seconds),
        "kvTokens": profile.kv_tokens,
    }
    return {"apiVersion": API_VERSION, "kind": "AcceleratorClass", "metadata": {"name": name}, "spec": written}


def _quantity(seconds: float) -> str:
    return f"{seconds:.3g}"


def _yaml(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=_WIDTH)


def _comments(entry: CatalogEntry, plan: MemoryPlan, options: ManifestOptions) -> list[str]:
    config, counts = entry.config, count_parameters(entry.config)
    quantization = config.quantization_config
    kind = config.torch_dtype if quantization is None else quantization.quant_method
    lines = [
        f"{entry.repository} on {plan.devices} × {plan.device.name}, {gib(plan.device.memory_bytes)} each",
        "",
        f"weights            {gib(plan.weight_bytes)}: {counts.total / 1e9:,.1f} billion parameters, {kind}",
        f"KV of one request  {gib(plan.kv_bytes)}: {plan.context:,} tokens, {_kv_shape(entry, plan, options.engine)}",
        f"usable             {gib(plan.usable_bytes)}: {MEMORY_SHARE:.0%} of each device, "
        f"less {gib(WORKSPACE_BYTES)} of workspace",
        f"KV cache           room for {plan.requests:,.1f} requests of that length",
        "",
        *(f"Figures: {source}" for source in entry.config_sources),
        *(f"Parsers: {source}" for source in entry.parser_sources),
    ]
    if entry.trust_remote_code:
        lines += ["", "Engines run Python code of the model's repository: set model.revision to a commit."]
    return lines


def _kv_shape(entry: CatalogEntry, plan: MemoryPlan, engine: str) -> str:
    config = entry.config
    if config.kv_lora_rank is not None:
        size = config.kv_lora_rank + config.qk_rope_head_dim
        return f"{config.num_hidden_layers} layers × {size} compressed values, whole on each device"
    shape = f"{config.num_hidden_layers} layers × {config.num_key_value_heads} KV heads"
    if config.sliding_window is not None and frees_windows(config, engine):
        full = config.full_attention_layers or 0
        shape += f", {config.num_hidden_layers - full} of them with a window of {config.sliding_window:,} tokens"
    if plan.devices > config.num_key_value_heads:
        shape += ", each head on several devices"
    return shape
