"""The devices that a model needs, and the message when it does not fit.

A device holds its share of the weights, its share of the KV cache, and the workspace of the
engine. The engine takes `MEMORY_SHARE` of the device for all three.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from fairlead.errors import BadInput
from fairlead_cli.catalog.architecture import is_valid_split, kv_bytes_per_device, weight_bytes
from fairlead_cli.catalog.entry import CatalogEntry, ModelConfig
from fairlead_cli.catalog.roofline import GIB, AcceleratorFigures

MEMORY_SHARE: Final = 0.92
"""The share of a device's memory that an engine takes: vLLM's default."""
WORKSPACE_BYTES: Final = 7 * GIB // 2
"""Memory of activations, graphs and communication on each device. An estimate.

Source: `other_mem` of the system files in ai-dynamo/aiconfigurator.
"""
DEFAULT_CONTEXT: Final = 131_072
"""The longest context that is taken without `--context`."""
_CONTEXT_STEP: Final = 1_024
_SPLITS: Final = (1, 2, 4, 8)
_MAX_PROPOSALS: Final = 3


@dataclass(frozen=True, slots=True)
class Device:
    """A device of an accelerator class.

    count: devices of one node; an instance of the catalogue stays on one node.
    """

    name: str
    memory_bytes: int
    count: int

    @property
    def usable_bytes(self) -> int:
        return max(0, int(self.memory_bytes * MEMORY_SHARE) - WORKSPACE_BYTES)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The memory of one instance on so many devices. Bytes are those of all devices together.

    context: tokens of the longest request.
    kv_bytes: KV of one request of that length.
    usable_bytes: room for weights and KV.
    """

    device: Device
    devices: int
    context: int
    weight_bytes: int
    kv_bytes: int

    @property
    def usable_bytes(self) -> int:
        return self.devices * self.device.usable_bytes

    @property
    def fits(self) -> bool:
        """True if the weights and one request of the whole context fit."""
        return self.weight_bytes + self.kv_bytes <= self.usable_bytes

    @property
    def requests(self) -> float:
        return max(0, self.usable_bytes - self.weight_bytes) / self.kv_bytes

    @property
    def kv_tokens(self) -> int:
        return int(self.requests * self.context)


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """A model, a device and the wishes of the user, from which a plan is made.

    context: tokens; None for the model's own length, at most `DEFAULT_CONTEXT`.
    devices: None for as few as possible.
    """

    entry: CatalogEntry
    device: Device
    engine: str = "vllm"
    context: int | None = None
    devices: int | None = None


def known_device(
    name: str, figures: Mapping[str, AcceleratorFigures], memory_bytes: int | None, *, takes_memory: bool = False
) -> Device:
    """Returns a device by the name of its class. Raises BadInput if its memory is not known.

    memory_bytes: memory of one device of a class of the user's own.
    takes_memory: the error proposes to give it.
    """
    found = figures.get(name)
    if memory_bytes is not None:
        return Device(name, memory_bytes, found.devices_per_node if found is not None else _SPLITS[-1])
    if found is None:
        own = ", or give the memory of one device, such as --memory 80Gi" if takes_memory else ""
        hint = f"use one of {', '.join(figures)}{own}"
        raise BadInput(f"the memory of {name} is not known", field="--on", hint=hint)
    return Device(name, found.memory_bytes, found.devices_per_node)


def plan_memory(request: PlanRequest, devices: int, context: int) -> MemoryPlan:
    """Returns the memory of an instance on so many devices."""
    config = request.entry.config
    per_device = kv_bytes_per_device(config, context, devices, has_windows=frees_windows(config, request.engine))
    return MemoryPlan(request.device, devices, context, weight_bytes(config), devices * per_device)


def frees_windows(config: ModelConfig, engine: str) -> bool:
    """Returns True if the engine keeps only the window of layers that have one.

    Why not SGLang: it reserves a pool for such layers whose size is a share of the others'.
    """
    return engine == "vllm" and config.attention_chunk_size is None


def choose_plan(request: PlanRequest) -> MemoryPlan | None:
    """Returns the plan with the fewest devices that fits; None if none does. Raises BadInput."""
    context = chosen_context(request)
    plans = (plan_memory(request, count, context) for count in _device_counts(request))
    return next((plan for plan in plans if plan.fits), None)


def chosen_context(request: PlanRequest) -> int:
    """Returns the context of a plan. Raises BadInput if the model takes no such context."""
    longest = request.entry.config.max_position_embeddings
    if request.context is None:
        return min(longest, DEFAULT_CONTEXT)
    if not 1 <= request.context <= longest:
        message = f"{request.entry.name} takes 1 to {longest:,} tokens, got {request.context:,}"
        raise BadInput(message, field="--context")
    return request.context


def _device_counts(request: PlanRequest) -> tuple[int, ...]:
    """Returns the numbers of devices to try. Raises BadInput if the model cannot be split so."""
    config = request.entry.config
    counts = tuple(count for count in _SPLITS if count <= request.device.count and is_valid_split(config, count))
    if request.devices is None:
        return counts
    if request.devices not in counts:
        message = f"{request.entry.name} cannot be split over {request.devices} devices of {request.device.name}"
        raise BadInput(message, field="--tensor", hint=f"use one of {', '.join(map(str, counts))}")
    return (request.devices,)


def describe_misfit(request: PlanRequest, figures: Mapping[str, AcceleratorFigures]) -> str:
    """Returns why a model does not fit, with the numbers, and what would fit.

    figures: of the accelerators that may be proposed instead.
    """
    context = chosen_context(request)
    plan = plan_memory(request, _device_counts(request)[-1], context)
    needed = (
        f"{request.entry.name} needs {gib(plan.weight_bytes)} for weights and {gib(plan.kv_bytes)} of KV for one "
        f"request of {context:,} tokens; {plan.devices} × {gib(request.device.usable_bytes)} of {request.device.name} "
        "are there"
    )
    proposals = (_more_devices(request), _other_accelerators(request, figures), _shorter_context(request, plan))
    fixes = [fix for fix in proposals if fix]
    return f"{needed}: use {', or '.join(fixes)}" if fixes else f"{needed}: use devices with more memory"


def _more_devices(request: PlanRequest) -> str:
    plan = None if request.devices is None else choose_plan(replace(request, devices=None))
    return "" if plan is None else f"--tensor {plan.devices}"


def _other_accelerators(request: PlanRequest, figures: Mapping[str, AcceleratorFigures]) -> str:
    """Returns accelerators on which the model fits, on the number of devices that the user gave."""
    fitting = []
    for name in figures:
        device = known_device(name, figures, None)
        if name == request.device.name or (request.devices or 0) > device.count:
            continue
        if choose_plan(replace(request, device=device)) is not None:
            fitting.append(name)
    tensor = "" if request.devices is None else f" with --tensor {request.devices}"
    return f"--on {' or '.join(fitting[:_MAX_PROPOSALS])}{tensor}" if fitting else ""


def _shorter_context(request: PlanRequest, plan: MemoryPlan) -> str:
    """Returns the longest context that fits, in steps of `_CONTEXT_STEP` tokens."""
    fitting, missing = 0, plan.context // _CONTEXT_STEP + 1
    while missing - fitting > 1:
        middle = (fitting + missing) // 2
        if plan_memory(request, plan.devices, middle * _CONTEXT_STEP).fits:
            fitting = middle
        else:
            missing = middle
    if not fitting:
        return ""
    tensor = f" with --tensor {plan.devices}" if request.devices is None and plan.devices > 1 else ""
    return f"--context ≤ {fitting * _CONTEXT_STEP:,}{tensor}"


def gib(size: float) -> str:
    """Returns bytes as `71.2 GiB`."""
    return f"{size / GIB:,.1f}".removesuffix(".0") + " GiB"
