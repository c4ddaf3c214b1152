"""``fairlead convert``: writes Fairlead's manifests from those of other systems."""

from dataclasses import dataclass
from typing import Annotated, Final

from cyclopts import Parameter

from fairlead.errors import BadInput
from fairlead_cli.manifest_arguments import collect_paths


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """Options of the command."""

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
        str | None, Parameter(help="The AcceleratorClass of all pools. Default: as the manifests suggest.")
    ] = None
    external: Annotated[
        bool,
        Parameter(negative=(), help="Write models that route to the engines that already run."),
    ] = False


_DEFAULTS: Final = ConvertOptions()


def convert(
    *files: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="Files, folders of YAML files, or - for standard input.")
    ],
    file: Annotated[
        list[str] | None,
        Parameter(name=["--file", "-f"], allow_leading_hyphen=True, help="More FILES, given as with kubectl."),
    ] = None,
    how: ConvertOptions = _DEFAULTS,
) -> int:
    """Convert manifests of other systems.

    Manifests of KServe, AIBrix, KubeAI, kthena, llm-d, LiteLLM and vLLM's production-stack become
    ModelDeployments, as do other Deployments and LeaderWorkerSets with vLLM or SGLang. Splits by
    weight, rules by header and fallbacks become ModelRoutes, and LoRA adapters become
    ModelAdapters. Standard error names each field that was not carried over, with
    the reason. Give all files of a model together: autoscalers and runtimes are separate objects.
    Fairlead's own objects among the files are checked, and stay as they are.

    Exits 0 when all is converted, and 1 when a manifest cannot be: nothing is written then. Prefer
    --out FILE to a redirection of the shell, which empties its file in any case.
    Exits 2 on wrong usage.
    """
    from fairlead_cli.manifest_conversion import ConversionOptions, convert_files
    from fairlead_cli.migration.draft import MigrationOptions

    paths = collect_paths(convert, files, file)
    if not paths:
        raise BadInput("no file was given", field="FILES", hint="fairlead convert FILE, or - for standard input")
    migration = MigrationOptions(how.accelerator, how.external)
    return convert_files(paths, ConversionOptions(how.json, migration, how.out))
