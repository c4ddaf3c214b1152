"""Finds the API server and the credentials: a pod's service account, or a kubeconfig.

Search order: `KUBECONFIG`, the pod's service account, `~/.kube/config`. Kubeconfig entries that are
not supported are errors that name the entry, so that Fairlead never connects with another identity.
Credential plugins are not supported unless the caller runs them.
"""

import base64
import binascii
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from fairlead.errors import BadInput

SERVICE_ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_CLUSTER_KEYS = {
    *("server", "certificate-authority", "certificate-authority-data", "insecure-skip-tls-verify", "tls-server-name"),
    *("extensions", "disable-compression", "proxy-url"),
}
_USER_KEYS = {
    *("client-certificate", "client-certificate-data", "client-key", "client-key-data", "token", "tokenFile"),
    *("as", "as-groups", "extensions"),
}
_HINTS = {
    "exec": "run the plugin yourself and give its token, or use a service account's token",
    "auth-provider": "give a token",
    "username": "API servers take no passwords any more; give a token or a client certificate",
}


class ClusterConfigError(BadInput):
    """Raised if no API server is configured, or in a way that is not supported."""


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """The address of an API server and the credentials for it.

    source: where this configuration was found, as text for people.
    ca_data, certificate, key: PEM.
    proxy_url: of the HTTP(S) proxy in between; it may hold a password.
    """

    server: str
    source: str
    namespace: str = "default"
    ca_data: bytes | None = None
    ca_file: Path | None = None
    certificate: bytes | None = None
    certificate_file: Path | None = None
    key: bytes | None = field(default=None, repr=False)
    key_file: Path | None = None
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    server_name: str | None = None
    verify_tls: bool = True
    impersonate_user: str | None = None
    impersonate_groups: tuple[str, ...] = ()
    proxy_url: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class PluginCredential:
    """The output of a credential plugin: a bearer token, a client certificate with its key, or
    both.
    """

    token: str | None = field(default=None, repr=False)
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


CredentialPlugin = Callable[[Mapping[str, Any], Path, ClusterConfig], PluginCredential]
"""Runs the credential plugin of a user.

Arguments: the `exec` entry, its kubeconfig, and the configuration without credentials.
"""


def load_config(environment: Mapping[str, str], home: Path, account: Path = SERVICE_ACCOUNT_FOLDER) -> ClusterConfig:
    """Returns the first configuration in search order. Raises ClusterConfigError."""
    if variable := environment.get("KUBECONFIG", ""):
        return config_from_kubeconfig([Path(part) for part in variable.split(os.pathsep) if part])
    if "KUBERNETES_SERVICE_HOST" in environment:
        return in_cluster_config(environment, account)
    default = home / ".kube" / "config"
    if default.exists():
        return config_from_kubeconfig([default])
    raise ClusterConfigError(
        "no Kubernetes cluster is configured", hint="set KUBECONFIG, or run in a pod with a service account"
    )


def in_cluster_config(environment: Mapping[str, str], account: Path = SERVICE_ACCOUNT_FOLDER) -> ClusterConfig:
    """Returns the configuration of this pod's service account.

    Raises ClusterConfigError if the pod has none. The token file is named, not read.

    Why: the cluster rotates the token.
    """
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    port = environment.get("KUBERNETES_SERVICE_PORT_HTTPS") or environment.get("KUBERNETES_SERVICE_PORT", "443")
    token, authority = account / "token", account / "ca.crt"
    for file in (token, authority):
        if not file.exists():
            raise ClusterConfigError(
                f"this pod has no {file}", hint="automountServiceAccountToken is off, or the volume is missing"
            )
    try:
        namespace = (account / "namespace").read_text().strip()
    except OSError:
        namespace = ""
    return ClusterConfig(
        server=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        source=f"the service account in {account}",
        namespace=namespace or "default",
        ca_file=authority,
        token_file=token,
    )


def config_from_kubeconfig(
    paths: list[Path], context: str | None = None, login: CredentialPlugin | None = None
) -> ClusterConfig:
    """Returns the configuration of a context of kubeconfig files. The first entry of a name wins.

    context: None for the current context.
    login: runs credential plugins. If None, a user that needs a plugin is an error.
    Raises ClusterConfigError.
    """
    merged: dict[str, dict[str, tuple[dict[str, Any], Path]]] = {"clusters": {}, "users": {}, "contexts": {}}
    current, existing = context or "", [path for path in paths if path.exists()]
    if not existing:
        raise ClusterConfigError(f"no kubeconfig at {', '.join(map(str, paths))}", field="KUBECONFIG")
    for path in existing:
        document = _read_yaml(path)
        current = current or str(document.get("current-context") or "")
        for section, entries in merged.items():
            for name, entry in _named_entries(document, section, path):
                entries.setdefault(name, (entry, path))
    names = ", ".join(map(str, existing))
    if not current:
        raise ClusterConfigError(f"{names} has no current context", field="current-context")
    context_entry, _ = _find_entry(merged["contexts"], current, "context", names)
    cluster, cluster_file = _find_entry(merged["clusters"], str(context_entry.get("cluster", "")), "cluster", names)
    user: dict[str, Any] = {}
    user_file = cluster_file
    if context_entry.get("user"):
        user, user_file = _find_entry(merged["users"], str(context_entry["user"]), "user", names)
    _reject_unsupported(cluster, _CLUSTER_KEYS, cluster_file, "cluster")
    _reject_unsupported(user, _USER_KEYS | ({"exec"} if login else set()), user_file, "user")
    config = _to_config(context_entry, (cluster, cluster_file), (user, user_file), f"the context {current} of {names}")
    plugin = user.get("exec")
    if (
        login is None
        or not plugin
        or config.token
        or config.token_file
        or config.certificate
        or config.certificate_file
    ):
        return config
    if not isinstance(plugin, dict):
        raise ClusterConfigError(f"{user_file}: exec of a user is not a mapping", field="exec")
    credential = login(plugin, user_file, config)
    return replace(config, token=credential.token, certificate=credential.certificate, key=credential.key)


def _to_config(
    context_entry: dict[str, Any], cluster: tuple[dict[str, Any], Path], user: tuple[dict[str, Any], Path], source: str
) -> ClusterConfig:
    server = str(cluster[0].get("server") or "").rstrip("/")
    if not server.startswith(("https://", "http://")):
        raise ClusterConfigError(
            f"{cluster[1]}: the cluster's server {server!r} is not an http(s) address", field="server"
        )
    proxy = str(cluster[0].get("proxy-url") or "")
    if proxy and not proxy.startswith(("https://", "http://")):
        message = f"{cluster[1]}: the cluster's proxy-url is not an http(s) address"
        raise ClusterConfigError(message, field="proxy-url", hint="SOCKS is not supported")
    authority, authority_file = _data_or_file(*cluster, "certificate-authority")
    certificate, certificate_file = _data_or_file(*user, "client-certificate")
    key, key_file = _data_or_file(*user, "client-key")
    if (certificate or certificate_file) is not None and (key or key_file) is None:
        raise ClusterConfigError(f"{user[1]}: the client certificate has no key", field="client-key")
    token_file = user[0].get("tokenFile")
    return ClusterConfig(
        server=server,
        source=source,
        namespace=str(context_entry.get("namespace") or "default"),
        ca_data=authority,
        ca_file=authority_file,
        certificate=certificate,
        certificate_file=certificate_file,
        key=key,
        key_file=key_file,
        token=None if token_file else user[0].get("token"),
        token_file=user[1].parent / str(token_file) if token_file else None,
        server_name=cluster[0].get("tls-server-name"),
        verify_tls=not cluster[0].get("insecure-skip-tls-verify", False),
        impersonate_user=user[0].get("as"),
        impersonate_groups=tuple(map(str, user[0].get("as-groups") or ())),
        proxy_url=proxy or None,
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ClusterConfigError(
            f"cannot read the kubeconfig {path}: {error.strerror or error}", field="KUBECONFIG"
        ) from error
    except yaml.YAMLError as error:
        raise ClusterConfigError(f"the kubeconfig {path} is not YAML", field="KUBECONFIG") from error
    if not isinstance(document, dict):
        raise ClusterConfigError(f"the kubeconfig {path} is empty or not a mapping", field="KUBECONFIG")
    return document


def _named_entries(document: dict[str, Any], section: str, path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Returns the named entries of a section: `clusters: [{name: x, cluster: {…}}]`."""
    field, entries = section.removesuffix("s"), []
    for entry in document.get(section) or []:
        value = entry.get(field) if isinstance(entry, dict) else None
        if not isinstance(value, dict | None) or not isinstance(entry, dict) or "name" not in entry:
            raise ClusterConfigError(f"{path}: an entry of {section} is not {{name, {field}}}", field=section)
        entries.append((str(entry["name"]), value or {}))
    return entries


def _find_entry(
    entries: dict[str, tuple[dict[str, Any], Path]], name: str, kind: str, names: str
) -> tuple[dict[str, Any], Path]:
    if name not in entries:
        raise ClusterConfigError(f"{names} has no {kind} {name!r}", field=f"{kind}s")
    return entries[name]


def _reject_unsupported(entry: dict[str, Any], honoured: set[str], path: Path, kind: str) -> None:
    for name, value in entry.items():
        if name not in honoured and value:
            raise ClusterConfigError(f"{path}: {name} of a {kind} is not honoured", field=name, hint=_HINTS.get(name))


def _data_or_file(entry: dict[str, Any], path: Path, name: str) -> tuple[bytes | None, Path | None]:
    """Returns inline data, else the named file, relative to the kubeconfig."""
    if data := entry.get(f"{name}-data"):
        try:
            return base64.b64decode(data, validate=True), None
        except (binascii.Error, TypeError, ValueError) as error:
            raise ClusterConfigError(f"{path}: {name}-data is not base64", field=f"{name}-data") from error
    return None, (path.parent / str(entry[name]) if entry.get(name) else None)
