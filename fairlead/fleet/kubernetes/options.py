"""Opens the fleet source for `--kube`."""

from collections.abc import Mapping
from pathlib import Path

from fairlead.errors import SettingsError
from fairlead.fleet.client_names import parse_client_names
from fairlead.fleet.endpoint_address import ENDPOINT_SECRETS_FOLDER, parse_endpoint_namespaces
from fairlead.fleet.kubernetes.source import KubeFleetSource
from fairlead.kube.client import KubeApi
from fairlead.kube.transport.kubeconfig import load_config
from fairlead.limits import Limits
from fairlead.names import DNS_LABEL_PATTERN
from fairlead.runtime.clock import Pacing
from fairlead.settings import variable_name


def open_kube_source(
    namespaces: str,
    environ: Mapping[str, str],
    pacing: Pacing,
    *,
    agent: str,
    limits: Limits,
) -> KubeFleetSource:
    """Returns a source for these namespaces (comma-separated; all if empty).

    Raises BadInput if no cluster is configured, or if a namespace or a setting is invalid.

    agent: user agent that the API server sees.
    """
    names = parse_namespaces(namespaces)
    access = load_config(environ, Path(environ.get("HOME", "/")))
    api = KubeApi(access, pacing.clock, pacing.chance, agent=agent, limits=limits)
    owners = parse_client_names(environ.get(variable_name("client_names"), ""))
    source = KubeFleetSource(
        api,
        pacing,
        namespaces=names,
        client_names=owners,
        endpoint_namespaces=parse_endpoint_namespaces(environ.get(variable_name("endpoint_namespaces"), "")),
        limits=limits,
    )
    source.endpoint_secrets = environ.get(variable_name("endpoint_secrets")) or ENDPOINT_SECRETS_FOLDER
    return source


def parse_namespaces(text: str) -> list[str]:
    """Returns the namespaces of `--kube`. Raises SettingsError for an invalid name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not DNS_LABEL_PATTERN.fullmatch(name):
            message = f"--kube: {name!r} is not a namespace"
            raise SettingsError(message, field="--kube", hint="write names of namespaces, separated by commas")
    return names
