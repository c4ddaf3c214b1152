"""``fairlead convert``: rewrites manifests of earlier releases in the words of this one."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairlead.errors import BadInput
from fairlead_cli.manifest_arguments import collect_paths


def convert(
    *files: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="Files, folders of YAML files, or - for standard input.")
    ],
    file: Annotated[
        list[str] | None,
        Parameter(name=["--file", "-f"], allow_leading_hyphen=True, help="More FILES, given as with kubectl."),
    ] = None,
    in_place: Annotated[bool, Parameter(negative=(), help="Rewrite the files instead of printing them.")] = False,
    cluster: Annotated[
        bool,
        Parameter(negative=(), help="Convert all objects of the cluster. Do this before you replace the CRDs."),
    ] = False,
    dry_run: Annotated[
        bool, Parameter(negative=(), help="With --cluster: print the objects and write nothing.")
    ] = False,
    context: Annotated[str | None, Parameter(help="A context of the kubeconfig. Default: its current one.")] = None,
    kubeconfig: Annotated[
        Path | None, Parameter(help="The kubeconfig. Default: KUBECONFIG, else ~/.kube/config.")
    ] = None,
) -> int:
    """Rewrite manifests of earlier releases in the words of this one.

    Prints the converted manifests on standard output and each change on standard error. Comments
    stay, but for files whose changes touch anchors, aliases or merge keys. A converted object
    describes the same pods: no engine restarts. With --cluster, the objects of the cluster are
    written as well: convert, replace the CRDs, then upgrade the chart, in this order.

    Exits 0 when all is converted, and 1 when a manifest cannot be: nothing is written then.
    Exits 2 on wrong usage, 3 when no API server can be reached.
    """
    from fairlead_cli.cluster.conversion import convert_cluster
    from fairlead_cli.manifest_conversion import convert_files
    from fairlead_cli.target import ClusterOptions

    paths = collect_paths(convert, files, file)
    if cluster and (paths or in_place):
        raise BadInput("--cluster takes no files", field="--cluster", hint="give files, or --cluster without files")
    if cluster:
        return convert_cluster(ClusterOptions(kubeconfig, context), dry_run=dry_run)
    if not paths:
        raise BadInput(
            "no file was given", field="FILES", hint="fairlead convert FILE, - for standard input, or --cluster"
        )
    return convert_files(paths, in_place=in_place)
