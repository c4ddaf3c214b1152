"""``fairlead version``: of the command line, and of what a cluster runs."""

import asyncio
import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairlead.api.kinds import served_kinds
from fairlead.api.v1alpha1 import GROUP
from fairlead.kube.client import KubeApi
from fairlead.kube.resources import CUSTOM_RESOURCE_DEFINITIONS, DEPLOYMENTS
from fairlead_cli.cluster.access.connection import connect, resolve_access
from fairlead_cli.cluster.facts_collector import list_own_objects
from fairlead_cli.cluster.missing_value import MissingValue, value_or_missing
from fairlead_cli.console import terminal_text
from fairlead_cli.errors import ClusterUnreachable
from fairlead_cli.exit_codes import OK, UNREACHABLE
from fairlead_cli.output import OutputFlag, format_document, is_document
from fairlead_cli.target import ClusterOptions, InstallationOptions, kubeconfig_paths
from fairlead_cli.version.report import (
    ServerVersions,
    VersionReport,
    client_version,
    component_versions,
    definition_versions,
    describe_versions,
)

_DEFAULTS = InstallationOptions()


def version(
    *,
    client: Annotated[bool, Parameter(help="Do not ask the cluster.", negative=())] = False,
    cluster: Annotated[InstallationOptions, Parameter(name="*")] = _DEFAULTS,
    output: OutputFlag = "table",
) -> int:
    """Show the version of this program, and of the installation in a cluster.

    The server's part has the versions and images of the components, and the API versions that the
    cluster serves and stores. Without a kubeconfig only the client is shown.

    Exits 0, 2 on wrong usage, 3 when the API server cannot be reached; the client is shown then,
    too.
    """
    report, code = VersionReport(client_version()), OK
    if not client and _has_cluster(cluster.cluster):
        try:
            report = VersionReport(report.client, asyncio.run(_server(cluster.cluster)))
        except ClusterUnreachable as error:
            report, code = VersionReport(report.client, problem=str(error)), UNREACHABLE
    print(format_document(report, output) if is_document(output) else terminal_text(describe_versions(report)))
    return code


def _has_cluster(options: ClusterOptions) -> bool:
    """Whether options, a kubeconfig or the environment of a pod name a cluster."""
    return "KUBERNETES_SERVICE_HOST" in os.environ or bool(kubeconfig_paths(options, os.environ, Path.home()))


async def _server(options: ClusterOptions) -> ServerVersions:
    async with connect(resolve_access(options)) as (api, version):
        return await server_versions(api, version, options.install_namespace)


async def server_versions(api: KubeApi, version: str, namespace: str | None) -> ServerVersions:
    """Returns what a cluster runs.

    version: of the API server.

    namespace: of the installation; None for all that can be seen.
    """
    names = [f"{kind.plural}.{GROUP}" for kind in served_kinds()]
    found = await asyncio.gather(
        *(value_or_missing(api.get(CUSTOM_RESOURCE_DEFINITIONS, None, name)) for name in names)
    )
    definitions = tuple(map(definition_versions, names, found))
    deployments = await list_own_objects(api, DEPLOYMENTS, namespace)
    if isinstance(deployments, MissingValue):
        return ServerVersions(version, (), definitions, deployments.reason)
    return ServerVersions(version, tuple(component_versions(deployments)), definitions)
