"""From ``--kube`` to a source: the way to the cluster, and the namespaces whose models are meant."""

from collections.abc import Callable, Mapping
from pathlib import Path

from fairlead.clock import Clock
from fairlead.errors import SettingsError
from fairlead.kube.access import find_access
from fairlead.kube.client import KubeApi
from fairlead.kubefleet.source import KubeFleetSource
from fairlead.limits import Limits
from fairlead.names import DNS_LABEL


def kube_source(
    namespaces: str,
    environ: Mapping[str, str],
    clock: Clock,
    chance: Callable[[], float],
    *,
    agent: str,
    limits: Limits,
) -> KubeFleetSource:
    """``namespaces`` with commas between them, all when empty; ``agent`` says who asks.

    Raises BadInput when there is no way to a cluster.
    """
    names = namespaces_of(namespaces)
    access = find_access(environ, Path(environ.get("HOME", "/")))
    return KubeFleetSource(
        KubeApi(access, clock, chance, agent=agent, limits=limits), clock, chance, namespaces=names, limits=limits
    )


def namespaces_of(text: str) -> list[str]:
    """What ``--kube`` names. Raises SettingsError for what is no namespace."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not DNS_LABEL.fullmatch(name):
            message = f"--kube: {name!r} is not a namespace"
            raise SettingsError(message, field="--kube", hint="names of namespaces, with commas between them")
    return names
