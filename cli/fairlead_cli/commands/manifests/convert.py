"""``fairlead convert``: rewrites manifests of earlier releases and of other systems."""

from dataclasses import dataclass
from typing import Annotated, Final

from cyclopts import Parameter

from fairlead.errors import BadInput
from fairlead_cli.manifest_arguments import collect_paths
from fairlead_cli.target import ContextFlag, KubeconfigFlag


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class FileOptions:
    """Options for files."""

    in_place: Annotated[bool, Parameter(negative=(), help="Rewrite the files instead of printing them.")] = False
    out: Annotated[
        str | None,
        Parameter(
            name="--out",
            help="A file for the converted manifests. It stays as it is when one cannot be converted.",
        ),
    ] = None
    json: Annotated[
        bool, Parameter(negative=(), help="Print one JSON object with the manifests and the notes about their fields.")
    ] = False
    accelerator: Annotated[
        str | None, Parameter(help="Of other systems: the AcceleratorClass of all pools. Default: as they suggest.")
    ] = None
    external: Annotated[
        bool,
        Parameter(negative=(), help="Of other systems: models that route to the engines that already run."),
    ] = False


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class ObjectOptions:
    """Options for the objects of a cluster."""

    cluster: Annotated[
        bool,
        Parameter(negative=(), help="Convert all objects of the cluster. Do this before you replace the CRDs."),
    ] = False
    dry_run: Annotated[bool, Parameter(negative=(), help="With --cluster: print the objects and write nothing.")] = (
        False
    )
    context: ContextFlag = None
    kubeconfig: KubeconfigFlag = None


_FILES: Final = FileOptions()
_OBJECTS: Final = ObjectOptions()


def convert(
    *files: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="Files, folders of YAML files, or - for standard input.")
    ],
    file: Annotated[
        list[str] | None,
        Parameter(name=["--file", "-f"], allow_leading_hyphen=True, help="More FILES, given as with kubectl."),
    ] = None,
    how: FileOptions = _FILES,
    objects: ObjectOptions = _OBJECTS,
) -> int:
    """Convert manifests of earlier releases and of other systems.

    Prints the converted manifests on standard output and each change on standard error. For
    manifests of an earlier release, comments stay, but for files whose changes touch anchors,
    aliases or merge keys. Such an object describes the same pods: no engine restarts. With
    --cluster, the objects of the cluster are written as well: convert, replace the CRDs, then
    upgrade the chart, in this order.

    Manifests of KServe, AIBrix, KubeAI, kthena, llm-d, LiteLLM and vLLM's production-stack become
    ModelDeployments. Splits by weight, rules by header and fallbacks become ModelRoutes, and LoRA
    adapters become ModelAdapters. Standard error names each field that was not carried over, with
    the reason. Give all files of a model together: autoscalers and runtimes are separate objects.

    Exits 0 when all is converted, and 1 when a manifest cannot be: nothing is written then. Prefer
    --out FILE to a redirection of the shell, which empties its file in any case.
    Exits 2 on wrong usage, 3 when no API server can be reached.
    """
    from fairlead_cli.cluster.conversion import convert_cluster
    from fairlead_cli.manifest_conversion import ConversionOptions, convert_files
    from fairlead_cli.migration.draft import MigrationOptions
    from fairlead_cli.target import ClusterOptions

    paths = collect_paths(convert, files, file)
    if objects.cluster and (paths or how != _FILES):
        raise BadInput(
            "--cluster takes no files, and none of their options",
            field="--cluster",
            hint="leave out files and options about them, or --cluster",
        )
    if objects.cluster:
        return convert_cluster(ClusterOptions(objects.kubeconfig, objects.context), dry_run=objects.dry_run)
    if not paths:
        raise BadInput(
            "no file was given", field="FILES", hint="fairlead convert FILE, - for standard input, or --cluster"
        )
    if how.in_place and how.out is not None:
        raise BadInput("--in-place writes the files themselves", field="--out", hint="leave one of them out")
    if how.in_place and how.json:
        raise BadInput("--in-place writes YAML files", field="--json", hint="leave one of them out")
    migration = MigrationOptions(how.accelerator, how.external)
    return convert_files(paths, ConversionOptions(how.in_place, how.json, migration, how.out))
