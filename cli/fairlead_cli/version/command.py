"""``fairlead version``: of the command line, and of what a cluster runs."""

import asyncio
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from fairlead import __version__
from fairlead.api.kinds import served_kinds
from fairlead.api.v1alpha1 import GROUP
from fairlead.kube.client import KubeApi
from fairlead.kube.resources import CUSTOM_RESOURCE_DEFINITIONS, DEPLOYMENTS, Manifest, name_of
from fairlead_cli.cluster.access.connection import connect, resolve_access
from fairlead_cli.cluster.components import COMPONENT_LABEL, RELEASE_LABEL, VERSION_LABEL
from fairlead_cli.cluster.facts_collector import list_own_objects
from fairlead_cli.cluster.object_fields import (
    MissingValue,
    containers_of,
    label_of,
    namespace_name,
    pod_spec_of,
    spec_of,
    status_of,
    value_or_missing,
)
from fairlead_cli.console import terminal_text
from fairlead_cli.exit_codes import OK, UNREACHABLE, ClusterUnreachable
from fairlead_cli.formatting import align_columns
from fairlead_cli.output import OutputFlag, format_document, is_document
from fairlead_cli.target import ClusterOptions, InstallationOptions, kubeconfig_paths

_DEFAULTS = InstallationOptions()


class ClientVersion(msgspec.Struct, frozen=True):
    """The installed command line."""

    version: str
    python: str
    platform: str


class ComponentVersion(msgspec.Struct, frozen=True):
    """One Deployment of an installation.

    version: by the chart's label. image: what its pods run.
    """

    namespace: str
    release: str
    component: str
    version: str
    image: str
    ready: str


class DefinitionVersions(msgspec.Struct, frozen=True, omit_defaults=True):
    """One kind of the API: the versions that the cluster serves, the one that it stores."""

    name: str
    served: tuple[str, ...] = ()
    stored: str = ""
    problem: str = ""


class ServerVersions(msgspec.Struct, frozen=True, omit_defaults=True):
    """Versions in a cluster. problem: why components are not listed; empty when they are."""

    kubernetes: str
    components: tuple[ComponentVersion, ...]
    definitions: tuple[DefinitionVersions, ...]
    problem: str = ""


class VersionReport(msgspec.Struct, frozen=True):
    """The client, and the server where one answers. problem: why none answers."""

    client: ClientVersion
    server: ServerVersions | None = None
    problem: str = ""


def client_version() -> ClientVersion:
    return ClientVersion(__version__, platform.python_version(), f"{platform.system()} {platform.machine()}".lower())


def component_versions(deployments: Sequence[Manifest]) -> Iterator[ComponentVersion]:
    """Yields the components of all installations by namespace and name."""
    for deployment in sorted(deployments, key=lambda one: (namespace_name(one), label_of(one, COMPONENT_LABEL))):
        containers = containers_of(pod_spec_of(deployment))
        status = status_of(deployment)
        yield ComponentVersion(
            namespace_name(deployment),
            label_of(deployment, RELEASE_LABEL),
            label_of(deployment, COMPONENT_LABEL) or name_of(deployment),
            label_of(deployment, VERSION_LABEL),
            str(containers[-1].get("image", "")) if containers else "",
            f"{status.get('readyReplicas', 0)}/{spec_of(deployment).get('replicas', 1)}",
        )


def definition_versions(name: str, definition: Manifest | MissingValue) -> DefinitionVersions:
    """Returns the versions of a CustomResourceDefinition."""
    if isinstance(definition, MissingValue):
        return DefinitionVersions(name, problem="not installed" if definition.is_absent else definition.reason)
    versions = spec_of(definition).get("versions") or []
    return DefinitionVersions(
        name,
        tuple(str(version["name"]) for version in versions if version.get("served")),
        next((str(version["name"]) for version in versions if version.get("storage")), ""),
    )


def describe_versions(report: VersionReport) -> str:
    """Returns the report as text."""
    client = report.client
    lines = [f"client      {client.version}  (Python {client.python}, {client.platform})"]
    if report.server is None:
        return "\n".join([*lines, f"server      {report.problem}"] if report.problem else lines)
    server = report.server
    lines.append(f"kubernetes  {server.kubernetes}")
    if server.problem:
        lines.append(f"server      {server.problem}")
    elif not server.components:
        lines.append("server      no installation was found")
    else:
        rows = [(one.component, one.version, one.ready, one.namespace, one.image) for one in server.components]
        lines += ["", align_columns([("COMPONENT", "VERSION", "READY", "NAMESPACE", "IMAGE"), *rows])]
    kinds = [(one.name, ", ".join(one.served) or one.problem, one.stored) for one in server.definitions]
    return "\n".join([*lines, "", align_columns([("DEFINITION", "SERVED", "STORED"), *kinds])])


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
