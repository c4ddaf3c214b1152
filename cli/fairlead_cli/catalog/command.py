"""``fairlead catalog``: lists models, and writes their manifests."""

import sys
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from cyclopts import Parameter

from fairlead import units
from fairlead.errors import BadInput
from fairlead.roofline import accelerator_figures
from fairlead_cli.catalog.config_file import read_config_entry
from fairlead_cli.catalog.entry import ENGINES, find_entry, read_entries
from fairlead_cli.catalog.manifest import ManifestOptions, render_manifest, render_with_class
from fairlead_cli.catalog.memory_plan import MemoryPlan, PlanRequest, choose_plan, describe_misfit, known_device
from fairlead_cli.catalog.text_output import entry_values, render_list
from fairlead_cli.exit_codes import OK, PROBLEM, report_failure
from fairlead_cli.output import OutputFlag, format_document, is_document

_NVIDIA_PREFIX = "nvidia-"


_Engine = Annotated[Literal["vllm", "sglang"], Parameter(help="The engine that serves the model.")]


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
        str | None, Parameter(help="Name of a Secret with HF_TOKEN, for repositories that ask for a licence.")
    ] = None


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
    one request of the whole context must fit.

    Exits 0 when done, 1 if the model does not fit, and 2 on wrong usage. Standard error names the
    missing memory, and what would fit.
    """
    engine, figures = deployment.engine, accelerator_figures()
    manifest = ManifestOptions(engine, deployment.name, deployment.image, deployment.replicas, deployment.secret)
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
        return report_failure("catalog show", describe_misfit(request, figures), PROBLEM)
    if devices.with_class:
        sys.stdout.write(render_with_class(entry, plan, manifest, figures[device.name]))
    else:
        sys.stdout.write(render_manifest(entry, plan, manifest))
    return OK


def _check_engine(engine: str) -> None:
    if engine not in ENGINES:
        raise BadInput(f"the catalogue has no engine {engine!r}", field="--engine", hint=f"use {' or '.join(ENGINES)}")
