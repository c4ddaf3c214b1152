"""``fairlead catalog``: lists models, and writes their manifests."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import yaml
from cyclopts import Parameter

from fairlead import units
from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.manifest_schema import EDITOR_COMMENT
from fairlead.api.v1alpha1 import API_VERSION
from fairlead.errors import BadInput
from fairlead_cli.catalog.architecture import (
    count_parameters,
    full_attention_layers,
    full_kv_heads,
    index_bytes,
    indexer_layers,
    model_cost,
    read_config_entry,
    state_bytes_per_layer,
    weight_bytes,
)
from fairlead_cli.catalog.entry import ENGINES, IMAGES, CatalogEntry, find_entry, read_entries
from fairlead_cli.catalog.memory_plan import (
    MEMORY_SHARE,
    WORKSPACE_BYTES,
    MemoryPlan,
    PlanRequest,
    choose_plan,
    describe_misfit,
    frees_windows,
    gib,
    known_device,
)
from fairlead_cli.catalog.roofline import AcceleratorFigures, accelerator_figures, roofline_profile
from fairlead_cli.exit_codes import OK, PROBLEM, report_failure
from fairlead_cli.formatting import UNKNOWN, align_columns
from fairlead_cli.output import OutputFlag, format_document, is_document

_NVIDIA_PREFIX = "nvidia-"


_Engine = Annotated[Literal["vllm", "sglang"], Parameter(help="The engine that serves the model.")]

_WIDTH: Final = 120
_TOKEN_SECRET: Final = "hf-token"
_STUBS: Final = """\
  # Next: latency targets, by which requests are routed and replicas scaled.
  # slo: {ttft: 2s, tpot: 50ms}
  # autoscaling: {mode: Auto}  # and maxReplicas in the pool
  # To keep the weights between starts, a PersistentVolumeClaim, below model:
  #   cache: {claimName: models}
"""


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """Options about devices and memory."""

    memory: Annotated[
        str | None,
        Parameter(help="Memory of one device, such as 80Gi, where --on names an AcceleratorClass of your own."),
    ] = None
    context: Annotated[
        int | None,
        Parameter(
            help="Tokens of the longest request, with its answer. Default: the model's own length, at most 131072."
        ),
    ] = None
    tensor: Annotated[
        int | None, Parameter(help="Devices of one instance. Default: as few as possible, at most those of a node.")
    ] = None
    with_class: Annotated[
        bool,
        Parameter(negative=(), help="Write an AcceleratorClass, too, with the speed of this model on the devices."),
    ] = False
    config: Annotated[
        str | None,
        Parameter(help="File config.json of a model that the catalogue lacks. MODEL is then its repository."),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class DeploymentOptions:
    """Options about the ModelDeployment."""

    engine: _Engine = "vllm"
    image: Annotated[str | None, Parameter(help="Image of the engine; needed for devices that are not NVIDIA's.")] = (
        None
    )
    name: Annotated[str | None, Parameter(help="Name of the ModelDeployment. Default: that of the catalogue.")] = None
    replicas: Annotated[int, Parameter(help="Minimum number of replicas.")] = 1
    secret: Annotated[
        str | None,
        Parameter(help="Name of a Secret with HF_TOKEN. Default: hf-token for repositories that ask for a licence."),
    ] = None

    def secret_of(self, entry: CatalogEntry) -> str | None:
        """Returns the Secret with the token for an entry; None if it needs none."""
        return self.secret or (_TOKEN_SECRET if entry.gated else None)


_DEVICES: Final = DeviceOptions()
_DEPLOYMENT: Final = DeploymentOptions()


def catalog_list(
    *,
    on: Annotated[
        str | None, Parameter(help="Show how many of these devices each model needs, such as nvidia-h100.")
    ] = None,
    engine: _Engine = "vllm",
    output: OutputFlag = "table",
) -> int:
    """Show the models of the catalogue: repository, parameters, weights and context.

    With --on, DEVICES is the smallest number on one node that holds the weights and one request of
    the default context. A dash stands for a model that does not fit.

    Exits 0 when done and 2 on wrong usage.
    """
    _check_engine(engine)
    entries = list(read_entries().values())
    plans: dict[str, MemoryPlan | None] | None = None
    if on is not None:
        device = known_device(on, accelerator_figures(), None)
        plans = {entry.name: choose_plan(PlanRequest(entry, device, engine)) for entry in entries}
    if is_document(output):
        values = [entry_values(entry, None if plans is None else plans[entry.name]) for entry in entries]
        print(format_document(values, output))
    else:
        print(render_list(entries, plans, is_wide=output == "wide"))
    return OK


def catalog_show(
    model: Annotated[str, Parameter(help="Name in the catalogue, or repository on Hugging Face.")],
    *,
    on: Annotated[str, Parameter(help="AcceleratorClass of the pool, such as nvidia-h100.")],
    devices: DeviceOptions = _DEVICES,
    deployment: DeploymentOptions = _DEPLOYMENT,
) -> int:
    """Write the manifest of a model: parsers, context, tensor parallelism and its memory.

    Comments show the sum of the memory, and the source of each figure. The weights and the KV of
    one request of the whole context must fit. Editors check the manifest when `fairlead lint
    --schema > fairlead.schema.json` was run in its folder.

    Exits 0 when done, 1 if the model does not fit, and 2 on wrong usage. Standard error names the
    missing memory, and what would fit.
    """
    engine, figures = deployment.engine, accelerator_figures()
    _check_engine(engine)
    entry = find_entry(model) if devices.config is None else read_config_entry(devices.config, model)
    memory = None if devices.memory is None else units.parse_size(devices.memory, field="--memory")
    device = known_device(on, figures, memory, takes_memory=True)
    if deployment.image is None and device.name in figures and not device.name.startswith(_NVIDIA_PREFIX):
        message = f"the catalogue knows no image of {engine} for {device.name}"
        raise BadInput(message, field="--image", hint="give the image of your platform")
    if devices.with_class and device.name not in figures:
        raise BadInput(f"the speed of {device.name} is not known", field="--with-class", hint="remove it")
    request = PlanRequest(entry, device, engine, devices.context, devices.tensor)
    plan = choose_plan(request)
    if plan is None:
        return report_failure(describe_misfit(request, figures), PROBLEM)
    if devices.with_class:
        sys.stdout.write(render_with_class(entry, plan, deployment, figures[device.name]))
    else:
        sys.stdout.write(render_manifest(entry, plan, deployment))
    return OK


def _check_engine(engine: str) -> None:
    if engine not in ENGINES:
        raise BadInput(f"the catalogue has no engine {engine!r}", field="--engine", hint=f"use {' or '.join(ENGINES)}")


def entry_values(entry: CatalogEntry, plan: MemoryPlan | None) -> dict[str, Any]:
    """Returns an entry as a value for JSON.

    plan: on an accelerator; None without one, or where the model does not fit.
    """
    return {
        "name": entry.name,
        "repository": entry.repository,
        "parameters": count_parameters(entry.config).total,
        "weightBytes": weight_bytes(entry.config),
        "maxContext": entry.config.max_position_embeddings,
        "devices": None if plan is None else plan.devices,
        "toolCallParser": {"vllm": entry.vllm.tool_call_parser, "sglang": entry.sglang.tool_call_parser},
        "reasoningParser": {"vllm": entry.vllm.reasoning_parser, "sglang": entry.sglang.reasoning_parser},
        "sources": [*entry.config_sources, *entry.parser_sources],
    }


def render_list(
    entries: Sequence[CatalogEntry], plans: Mapping[str, MemoryPlan | None] | None, *, is_wide: bool
) -> str:
    """Returns the table of entries.

    plans: by entry; None without an accelerator.
    is_wide: with the parsers of vLLM.
    """
    head = ["NAME", "REPOSITORY", "PARAMETERS", "WEIGHTS", "CONTEXT"]
    rows = [[*head, *(["DEVICES"] if plans is not None else []), *(["TOOLS", "REASONING"] if is_wide else [])]]
    for entry in entries:
        row = [
            entry.name,
            entry.repository,
            f"{count_parameters(entry.config).total / 1e9:,.1f}B",
            gib(weight_bytes(entry.config)),
            f"{entry.config.max_position_embeddings:,}",
        ]
        if plans is not None:
            plan = plans[entry.name]
            row.append(UNKNOWN if plan is None else str(plan.devices))
        if is_wide:
            row += [entry.vllm.tool_call_parser or UNKNOWN, entry.vllm.reasoning_parser or UNKNOWN]
        rows.append(row)
    return align_columns(rows)


def render_with_class(
    entry: CatalogEntry, plan: MemoryPlan, options: DeploymentOptions, figures: AcceleratorFigures
) -> str:
    """Returns an AcceleratorClass with the speed of the entry, and a ModelDeployment on it."""
    name = f"{plan.device.name}-{entry.name}"
    comments = f"# A roofline, not a measurement. Source: {figures.source}.\n"
    if figures.node_label:
        comments += f"# In a cluster with several kinds: nodeSelector: {{{figures.node_label}}}\n"
    written = _yaml(accelerator_class(entry, plan, figures, name))
    return f"{comments}{written}---\n{render_manifest(entry, plan, options, name)}"


def render_manifest(
    entry: CatalogEntry, plan: MemoryPlan, options: DeploymentOptions, class_name: str | None = None
) -> str:
    comments = "\n".join(f"# {line}".rstrip() for line in _comments(entry, plan, options))
    return f"{comments}\n{_yaml(model_deployment(entry, plan, options, class_name))}{_STUBS}"


def model_deployment(
    entry: CatalogEntry, plan: MemoryPlan, options: DeploymentOptions, class_name: str | None = None
) -> dict[str, Any]:
    """Returns the ModelDeployment of an entry on the devices of a plan."""
    model: dict[str, Any] = {"uri": f"hf://{entry.repository}", "servedNames": [entry.repository]}
    secret = options.secret_of(entry)
    if secret is not None:
        model["credentials"] = {"secretRef": {"name": secret}}
    pool: dict[str, Any] = {
        "acceleratorClassName": class_name or plan.device.name,
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


def engine_arguments(entry: CatalogEntry, plan: MemoryPlan, options: DeploymentOptions) -> list[str]:
    """Returns the engine's arguments: context, memory and parsers."""
    parsers = entry.parsers(options.engine)
    if options.engine == "vllm":
        arguments = [f"--max-model-len={plan.context}", f"--gpu-memory-utilization={MEMORY_SHARE}"]
        if parsers.tokenizer_mode is not None:
            arguments.append(f"--tokenizer-mode={parsers.tokenizer_mode}")
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
    return f"{EDITOR_COMMENT}\n" + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=_WIDTH)


def _comments(entry: CatalogEntry, plan: MemoryPlan, options: DeploymentOptions) -> list[str]:
    config, counts = entry.config, count_parameters(entry.config)
    quantization = config.quantization_config
    kind = config.torch_dtype if quantization is None else quantization.data_type
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
    if entry.gated:
        secret = options.secret_of(entry)
        lines += [
            "",
            f"{entry.repository} is gated: accept its licence on Hugging Face, and store a token of that account:",
            f"kubectl create secret generic {secret} --from-literal=HF_TOKEN=…",
        ]
    if entry.trust_remote_code:
        lines += ["", "Engines run Python code of the model's repository: set model.revision to a commit."]
    return lines


def _kv_shape(entry: CatalogEntry, plan: MemoryPlan, engine: str) -> str:
    config = entry.config
    layers, full = config.num_hidden_layers, full_attention_layers(config)
    if config.kv_lora_rank is not None:
        shape = f"{layers} layers × {config.kv_lora_rank + config.qk_rope_head_dim} compressed values"
        if config.index_n_heads:
            shape += f" and {indexer_layers(config)} × {index_bytes(config)} bytes of index"
        return f"{shape}, whole on each device"
    if config.linear_num_value_heads:
        state = gib((layers - full) * state_bytes_per_layer(config))
        shape = f"{full} layers × {config.num_key_value_heads} KV heads, and {state} of linear attention's state"
    elif full_kv_heads(config) != config.num_key_value_heads:
        shape = f"{full} layers × {full_kv_heads(config)} and {layers - full} × {config.num_key_value_heads} KV heads"
    else:
        shape = f"{layers} layers × {config.num_key_value_heads} KV heads"
    if config.sliding_window is not None and frees_windows(config, engine):
        shape += f", {layers - full} of them with a window of {config.sliding_window:,} tokens"
    if plan.devices > full_kv_heads(config):
        shape += ", each head on several devices"
    return shape
