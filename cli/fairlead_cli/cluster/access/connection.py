"""The connection to a cluster: kubeconfig, context and errors that name both.

The plugin is a program of the user, named in the kubeconfig, and runs as kubectl runs it: it reads
``KUBERNETES_EXEC_INFO`` and prints an ExecCredential. Its output is a secret and appears in no
message.
"""

import base64
import getpass
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from fairlead import __version__
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import KubeError, Unauthenticated, Unreachable
from fairlead.kube.transport.kubeconfig import (
    ClusterConfig,
    ClusterConfigError,
    PluginCredential,
    config_from_kubeconfig,
    load_config,
)
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock, SystemClock
from fairlead_cli.exit_codes import ClusterUnreachable
from fairlead_cli.target import ClusterOptions, kubeconfig_paths

CLI_LIMITS: Final = Limits(kube_attempts=2, kube_connect_seconds=4.0, kube_response_seconds=20.0)
"""Short timeouts, because a person waits for the answer."""

EXEC_API_VERSIONS: Final = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
TIMEOUT_SECONDS: Final = 120.0
"""A plugin may open a browser and wait for a person."""
_MAX_ERROR_CHARACTERS = 500


def resolve_access(
    options: ClusterOptions, environment: Mapping[str, str] | None = None, home: Path | None = None
) -> ClusterConfig:
    """Returns address and credentials of the cluster; runs login plugins. Raises ClusterUnreachable
    (exit code 3).
    """
    environment = os.environ if environment is None else environment
    home = Path.home() if home is None else home
    try:
        paths = kubeconfig_paths(options, environment, home)
        return (
            config_from_kubeconfig(paths, options.context, run_exec_plugin) if paths else load_config(environment, home)
        )
    except ClusterConfigError as error:
        raise ClusterUnreachable(error.message, hint=_hint(error)) from None


def _hint(error: ClusterConfigError) -> str:
    """Returns what the user can do; an error about a field of the kubeconfig has its own hint."""
    if error.field == "contexts":
        return "`kubectl config get-contexts` lists what there is"
    if error.field in (None, "KUBECONFIG", "current-context"):
        return "name a kubeconfig by --kubeconfig or KUBECONFIG, and one of its contexts by --context"
    return error.hint or "mend it, or choose another by --kubeconfig or --context"


@asynccontextmanager
async def connect(access: ClusterConfig, clock: Clock | None = None) -> AsyncIterator[tuple[KubeApi, str]]:
    """Yields a client of the API server and the server's version.

    Raises ClusterUnreachable when the server does not answer or rejects the credentials.
    """
    chance = random.SystemRandom().random
    async with KubeApi(
        access, clock or SystemClock(), chance, agent=f"fairlead/{__version__}", limits=CLI_LIMITS
    ) as api:
        try:
            version = await api.version()
        except ClusterConfigError as error:
            raise ClusterUnreachable(error.message, hint=error.hint) from None
        except (Unreachable, Unauthenticated) as error:
            raise unreachable_error(error, access) from None
        yield api, version


def unreachable_error(error: KubeError, access: ClusterConfig) -> ClusterUnreachable:
    """Returns the error for the user: which server, from which kubeconfig, and what to try."""
    if isinstance(error, Unauthenticated):
        return ClusterUnreachable(
            f"the API server {access.server} does not accept the credentials of {access.source}",
            hint="log in again: the token or certificate is not accepted, or has run out",
        )
    _, _, words = error.message.partition(": ")
    return ClusterUnreachable(
        f"the API server {access.server} does not answer: {words or error.message}",
        hint=f"the address is from {access.source}; is the cluster up, and reachable from here? "
        "Choose another cluster with --context or --kubeconfig",
    )


def local_user() -> str:
    """Returns who runs this program, for audit records: `USER@HOST`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def run_exec_plugin(plugin: Mapping[str, Any], kubeconfig: Path, access: ClusterConfig) -> PluginCredential:
    """Runs the plugin once and returns its credential.

    Raises AccessError with the command and its standard error.
    """
    version, command = str(plugin.get("apiVersion") or ""), str(plugin.get("command") or "")
    if version not in EXEC_API_VERSIONS:
        raise ClusterConfigError(
            f"{kubeconfig}: the plugin {command!r} has {f'apiVersion {version}' if version else 'no apiVersion'}",
            field="exec.apiVersion",
            hint=f"use one of {', '.join(EXEC_API_VERSIONS)}",
        )
    interactive = plugin.get("interactiveMode") != "Never" and sys.stdin.isatty()
    if plugin.get("interactiveMode") == "Always" and not interactive:
        raise ClusterConfigError(
            f"the plugin {command!r} wants a terminal", field="exec", hint="run this in a terminal"
        )
    output = _run_command(
        [(command if os.sep not in command else str(kubeconfig.parent / command)), *map(str, plugin.get("args") or ())],
        {
            **os.environ,
            **_environment(plugin),
            "KUBERNETES_EXEC_INFO": json.dumps(_exec_info(plugin, version, interactive, access)),
        },
        interactive,
        str(plugin.get("installHint") or "").strip() or "is it installed, and on PATH?",
    )
    return _credential(output, version, command)


def _environment(plugin: Mapping[str, Any]) -> dict[str, str]:
    return {
        str(variable["name"]): str(variable["value"])
        for variable in plugin.get("env") or ()
        if "name" in variable and "value" in variable
    }


def _exec_info(plugin: Mapping[str, Any], version: str, interactive: bool, access: ClusterConfig) -> dict[str, Any]:
    spec: dict[str, Any] = {"interactive": interactive}
    if plugin.get("provideClusterInfo"):
        authority = access.ca_data or (access.ca_file.read_bytes() if access.ca_file else None)
        spec["cluster"] = {
            "server": access.server,
            **({"certificate-authority-data": base64.b64encode(authority).decode()} if authority else {}),
            **({"insecure-skip-tls-verify": True} if not access.verify_tls else {}),
            **({"tls-server-name": access.server_name} if access.server_name else {}),
        }
    return {"apiVersion": version, "kind": "ExecCredential", "spec": spec}


def _run_command(command: list[str], environment: dict[str, str], interactive: bool, missing: str) -> bytes:
    name = command[0]
    try:
        result = subprocess.run(
            command,
            stdin=None if interactive else subprocess.DEVNULL,
            capture_output=not interactive,
            stdout=subprocess.PIPE if interactive else None,
            env=environment,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except OSError as error:
        raise ClusterConfigError(
            f"the login plugin {name!r} cannot be run: {error.strerror}", field="exec", hint=missing
        ) from None
    except subprocess.TimeoutExpired:
        raise ClusterConfigError(
            f"the login plugin {name!r} took longer than {TIMEOUT_SECONDS:.0f} s", field="exec"
        ) from None
    if result.returncode:
        stderr = " ".join((result.stderr or b"").decode("utf-8", "replace").split())[-_MAX_ERROR_CHARACTERS:]
        raise ClusterConfigError(
            f"the login plugin {name!r} exited with {result.returncode}" + (f": {stderr}" if stderr else ""),
            field="exec",
            hint="log in again",
        )
    return result.stdout


def _credential(output: bytes, version: str, command: str) -> PluginCredential:
    try:
        document = json.loads(output)
        status = document["status"] if document.get("apiVersion") == version else {}
        token, certificate, key = (
            str(status.get(name) or "") for name in ("token", "clientCertificateData", "clientKeyData")
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ClusterConfigError(f"the login plugin {command!r} printed no ExecCredential", field="exec") from None
    if not token and not (certificate and key):
        raise ClusterConfigError(
            f"the login plugin {command!r} gave neither a token nor a certificate with its key", field="exec"
        )
    return PluginCredential(token or None, certificate.encode() or None, key.encode() or None)
