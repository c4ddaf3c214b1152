"""``fairlead catalog``: from the options to the exit code."""

import sys
from dataclasses import dataclass, field

from fairlead import units
from fairlead.errors import BadInput
from fairlead.roofline import accelerator_figures
from fairlead_cli.catalog.config_file import read_config_entry
from fairlead_cli.catalog.entry import ENGINES, find_entry, read_entries
from fairlead_cli.catalog.manifest import ManifestOptions, render_manifest, render_with_class
from fairlead_cli.catalog.memory_plan import MemoryPlan, PlanRequest, choose_plan, describe_misfit, known_device
from fairlead_cli.catalog.text_output import entry_values, render_list
from fairlead_cli.exit_codes import OK, PROBLEM, report_failure
from fairlead_cli.output import OutputFormat, format_document, is_document

_NVIDIA_PREFIX = "nvidia-"


@dataclass(frozen=True, slots=True)
class ShowOptions:
    """Options of ``fairlead catalog show``.

    memory: of one device, as text such as `80Gi`; None for a device that is known.
    with_class: the AcceleratorClass is written, too.
    config: path of the model's config.json; None for a model of the catalogue.
    """

    model: str
    accelerator: str
    memory: str | None = None
    context: int | None = None
    tensor: int | None = None
    with_class: bool = False
    config: str | None = None
    manifest: ManifestOptions = field(default_factory=ManifestOptions)


def run_list(accelerator: str | None, engine: str, output: OutputFormat) -> int:
    """Prints the catalogue and returns the exit code.

    accelerator: each entry gets the number of its devices; None leaves them out.
    """
    _check_engine(engine)
    entries = list(read_entries().values())
    plans: dict[str, MemoryPlan | None] | None = None
    if accelerator is not None:
        device = known_device(accelerator, accelerator_figures(), None)
        plans = {entry.name: choose_plan(PlanRequest(entry, device, engine)) for entry in entries}
    if is_document(output):
        values = [entry_values(entry, None if plans is None else plans[entry.name]) for entry in entries]
        print(format_document(values, output))
    else:
        print(render_list(entries, plans, is_wide=output == "wide"))
    return OK


def run_show(options: ShowOptions) -> int:
    """Prints the manifest of a model and returns the exit code.

    Exits with PROBLEM and the numbers if the model does not fit. Raises BadInput.
    """
    engine, figures = options.manifest.engine, accelerator_figures()
    _check_engine(engine)
    entry = find_entry(options.model) if options.config is None else read_config_entry(options.config, options.model)
    memory = None if options.memory is None else units.parse_size(options.memory, field="--memory")
    device = known_device(options.accelerator, figures, memory, takes_memory=True)
    if options.manifest.image is None and device.name in figures and not device.name.startswith(_NVIDIA_PREFIX):
        message = f"the catalogue knows no image of {engine} for {device.name}"
        raise BadInput(message, field="--image", hint="give the image of your platform")
    if options.with_class and device.name not in figures:
        raise BadInput(f"the speed of {device.name} is not known", field="--with-class", hint="remove it")
    request = PlanRequest(entry, device, engine, options.context, options.tensor)
    plan = choose_plan(request)
    if plan is None:
        return report_failure("catalog show", describe_misfit(request, figures), PROBLEM)
    if options.with_class:
        sys.stdout.write(render_with_class(entry, plan, options.manifest, figures[device.name]))
    else:
        sys.stdout.write(render_manifest(entry, plan, options.manifest))
    return OK


def _check_engine(engine: str) -> None:
    if engine not in ENGINES:
        raise BadInput(f"the catalogue has no engine {engine!r}", field="--engine", hint=f"use {' or '.join(ENGINES)}")
