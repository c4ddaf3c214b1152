"""Login by a plugin, as the kubeconfigs of cloud providers want it: ``aws eks get-token``, ``gke-gcloud-auth-plugin``, ``kubelogin``.

The plugin is the user's own program, named in the user's own kubeconfig, and is run as kubectl runs it: told about the call in
``KUBERNETES_EXEC_INFO``, it prints an ExecCredential. What it prints is a secret and appears in no message.
"""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fairlead.kube.transport.kubeconfig import ClusterConfig, ClusterConfigError, PluginCredential

EXEC_API_VERSIONS: Final = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
TIMEOUT_SECONDS: Final = 120.0
"""A plugin may open a browser and wait for a person."""
_MAX_ERROR_CHARACTERS = 500


def run_exec_plugin(plugin: Mapping[str, Any], kubeconfig: Path, access: ClusterConfig) -> PluginCredential:
    """Run it once. Raises AccessError that names the command and what it said on its standard error."""
    version, command = str(plugin.get("apiVersion") or ""), str(plugin.get("command") or "")
    if version not in EXEC_API_VERSIONS:
        raise ClusterConfigError(
            f"{kubeconfig}: the plugin {command!r} speaks {version or 'no apiVersion'}",
            field="exec.apiVersion",
            hint=f"known are {' and '.join(EXEC_API_VERSIONS)}",
        )
    interactive = plugin.get("interactiveMode") != "Never" and sys.stdin.isatty()
    if plugin.get("interactiveMode") == "Always" and not interactive:
        raise ClusterConfigError(
            f"the plugin {command!r} wants a terminal", field="exec", hint="run this in a terminal"
        )
    told = _run_command(
        [_program(command, kubeconfig), *map(str, plugin.get("args") or ())],
        {
            **os.environ,
            **_environment(plugin),
            "KUBERNETES_EXEC_INFO": json.dumps(_exec_info(plugin, version, interactive, access)),
        },
        interactive,
        str(plugin.get("installHint") or "").strip() or "is it installed, and on PATH?",
    )
    return _credential(told, version, command)


def _program(command: str, kubeconfig: Path) -> str:
    """A bare name is looked up on PATH; a path is relative to the kubeconfig that holds it."""
    return command if os.sep not in command else str(kubeconfig.parent / command)


def _environment(plugin: Mapping[str, Any]) -> dict[str, str]:
    return {str(one["name"]): str(one["value"]) for one in plugin.get("env") or () if "name" in one and "value" in one}


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
        done = subprocess.run(
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
    if done.returncode:
        said = " ".join((done.stderr or b"").decode("utf-8", "replace").split())[-_MAX_ERROR_CHARACTERS:]
        raise ClusterConfigError(
            f"the login plugin {name!r} exited with {done.returncode}" + (f": {said}" if said else ""),
            field="exec",
            hint="log in again",
        )
    return done.stdout


def _credential(told: bytes, version: str, command: str) -> PluginCredential:
    try:
        found = json.loads(told)
        status = found["status"] if found.get("apiVersion") == version else {}
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
