"""The versions of the command line and of what a cluster runs. Pure."""

import platform
from collections.abc import Iterator, Sequence

import msgspec

from fairlead import __version__
from fairlead.kube.resources import Manifest, name_of
from fairlead_cli.cluster.components import COMPONENT_LABEL, RELEASE_LABEL, VERSION_LABEL
from fairlead_cli.cluster.missing_value import MissingValue
from fairlead_cli.cluster.object_fields import containers_of, label_of, namespace_name, pod_spec_of, spec_of, status_of
from fairlead_cli.formatting import align_columns


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
    """Returns the version of this program and of what it runs on."""
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
