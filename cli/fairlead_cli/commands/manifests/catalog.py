"""``fairlead catalog``: lists models, and writes their manifests."""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from cyclopts import Parameter

from fairlead_cli.output import OutputFlag

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
    from fairlead_cli.catalog.command import run_list

    return run_list(on, engine, output)


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
    from fairlead_cli.catalog.command import ShowOptions, run_show
    from fairlead_cli.catalog.manifest import ManifestOptions

    return run_show(
        ShowOptions(
            model,
            on,
            memory=devices.memory,
            context=devices.context,
            tensor=devices.tensor,
            with_class=devices.with_class,
            config=devices.config,
            manifest=ManifestOptions(
                deployment.engine, deployment.name, deployment.image, deployment.replicas, deployment.secret
            ),
        )
    )
