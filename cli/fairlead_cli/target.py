"""The target of a command: the stack on this machine, or a cluster."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairlead.errors import BadInput
from fairlead_cli.local.run_directory import running_stacks

ModelFlag = Annotated[
    str | None,
    Parameter(name=["--model", "-m"], help="A model: its name, or namespace/name. May be left out if there is one."),
]
NamespaceFlag = Annotated[
    str | None,
    Parameter(name=["--namespace", "-n"], help="The namespace of models. Default: the context's."),
]
InstallationFlag = Annotated[
    str | None,
    Parameter(
        name="--install-namespace", help="The namespace of the installation. Default: found by the chart's labels."
    ),
]
ContextFlag = Annotated[str | None, Parameter(help="A context of the kubeconfig. Default: its current one.")]
KubeconfigFlag = Annotated[Path | None, Parameter(help="The kubeconfig. Default: KUBECONFIG, else ~/.kube/config.")]


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Options that select a cluster; None for kubectl's defaults.

    namespace: of models.

    install_namespace: of Fairlead itself.
    """

    kubeconfig: KubeconfigFlag = None
    context: ContextFlag = None
    namespace: NamespaceFlag = None
    install_namespace: InstallationFlag = None

    @property
    def names_cluster(self) -> bool:
        return any(option is not None for option in (self.kubeconfig, self.context, self.install_namespace))

    @property
    def is_explicit(self) -> bool:
        return self.names_cluster or self.namespace is not None


@dataclass(frozen=True, slots=True)
class InstallationOptions:
    """Options that select an installation in a cluster, without a namespace of models."""

    kubeconfig: KubeconfigFlag = None
    context: ContextFlag = None
    install_namespace: InstallationFlag = None

    @property
    def cluster(self) -> ClusterOptions:
        return ClusterOptions(self.kubeconfig, self.context, install_namespace=self.install_namespace)


def qualified_name(model: str | None, namespace: str | None) -> str | None:
    return f"{namespace}/{model}" if model and namespace and "/" not in model else model


def is_cluster_target(options: ClusterOptions, address: str | None, flag: str = "--manage") -> bool:
    """Whether a command means a cluster: by its options, else by the name of the program.

    Without either, it means a cluster if no stack runs here, and there is a kubeconfig or this is a
    pod.

    address: value of ``flag``, which names a server instead of a cluster.

    Raises BadInput when both an address and a cluster are given.
    """
    if address is not None:
        if options.names_cluster:
            raise BadInput(
                f"{flag} names a server, and other options name a cluster", field=flag, hint="give one of the two"
            )
        return False
    if options.is_explicit:
        return True
    if Path(sys.argv[0]).name == "kubectl-fairlead":
        return True
    if running_stacks():
        return False
    inside = "KUBERNETES_SERVICE_HOST" in os.environ
    return inside or bool(kubeconfig_paths(options, os.environ, Path.home()))


def kubeconfig_paths(options: ClusterOptions, environment: Mapping[str, str], home: Path) -> list[Path]:
    """Returns the kubeconfig files to read, by kubectl's rules; empty when there is none."""
    if options.kubeconfig is not None:
        return [options.kubeconfig]
    if named := environment.get("KUBECONFIG", ""):
        return [Path(part) for part in named.split(os.pathsep) if part]
    default = home / ".kube" / "config"
    if default.exists() or (options.context is not None and "KUBERNETES_SERVICE_HOST" not in environment):
        return [default]
    return []
