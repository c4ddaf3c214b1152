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

from fairlead.kube.access import Access, AccessError, Credential

VERSIONS: Final = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
SECONDS: Final = 120.0
"""A plugin may open a browser and wait for a person."""
_SAID = 500


def login(plugin: Mapping[str, Any], kubeconfig: Path, access: Access) -> Credential:
    """Run it once. Raises AccessError that names the command and what it said on its standard error."""
    version, command = str(plugin.get("apiVersion") or ""), str(plugin.get("command") or "")
    if version not in VERSIONS:
        raise AccessError(
            f"{kubeconfig}: the plugin {command!r} speaks {version or 'no apiVersion'}",
            field="exec.apiVersion",
            hint=f"known are {' and '.join(VERSIONS)}",
        )
    interactive = plugin.get("interactiveMode") != "Never" and sys.stdin.isatty()
    if plugin.get("interactiveMode") == "Always" and not interactive:
        raise AccessError(f"the plugin {command!r} wants a terminal", field="exec", hint="run this in a terminal")
    told = _run(
        [_program(command, kubeconfig), *map(str, plugin.get("args") or ())],
        {
            **os.environ,
            **_given(plugin),
            "KUBERNETES_EXEC_INFO": json.dumps(_info(plugin, version, interactive, access)),
        },
        interactive,
        str(plugin.get("installHint") or "").strip() or "is it installed, and on PATH?",
    )
    return _credential(told, version, command)


def _program(command: str, kubeconfig: Path) -> str:
    """A bare name is looked up on PATH; a path is relative to the kubeconfig that holds it."""
    return command if os.sep not in command else str(kubeconfig.parent / command)


def _given(plugin: Mapping[str, Any]) -> dict[str, str]:
    return {str(one["name"]): str(one["value"]) for one in plugin.get("env") or () if "name" in one and "value" in one}


def _info(plugin: Mapping[str, Any], version: str, interactive: bool, access: Access) -> dict[str, Any]:
    spec: dict[str, Any] = {"interactive": interactive}
    if plugin.get("provideClusterInfo"):
        authority = access.authority or (access.authority_file.read_bytes() if access.authority_file else None)
        spec["cluster"] = {
            "server": access.server,
            **({"certificate-authority-data": base64.b64encode(authority).decode()} if authority else {}),
            **({"insecure-skip-tls-verify": True} if not access.verified else {}),
            **({"tls-server-name": access.server_name} if access.server_name else {}),
        }
    return {"apiVersion": version, "kind": "ExecCredential", "spec": spec}


def _run(command: list[str], environment: dict[str, str], interactive: bool, missing: str) -> bytes:
    name = command[0]
    try:
        done = subprocess.run(
            command,
            stdin=None if interactive else subprocess.DEVNULL,
            capture_output=not interactive,
            stdout=subprocess.PIPE if interactive else None,
            env=environment,
            timeout=SECONDS,
            check=False,
        )
    except OSError as error:
        raise AccessError(
            f"the login plugin {name!r} cannot be run: {error.strerror}", field="exec", hint=missing
        ) from None
    except subprocess.TimeoutExpired:
        raise AccessError(f"the login plugin {name!r} took longer than {SECONDS:.0f} s", field="exec") from None
    if done.returncode:
        said = " ".join((done.stderr or b"").decode("utf-8", "replace").split())[-_SAID:]
        raise AccessError(
            f"the login plugin {name!r} exited with {done.returncode}" + (f": {said}" if said else ""),
            field="exec",
            hint="log in again",
        )
    return done.stdout


def _credential(told: bytes, version: str, command: str) -> Credential:
    try:
        found = json.loads(told)
        status = found["status"] if found.get("apiVersion") == version else {}
        token, certificate, key = (
            str(status.get(name) or "") for name in ("token", "clientCertificateData", "clientKeyData")
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AccessError(f"the login plugin {command!r} printed no ExecCredential", field="exec") from None
    if not token and not (certificate and key):
        raise AccessError(
            f"the login plugin {command!r} gave neither a token nor a certificate with its key", field="exec"
        )
    return Credential(token or None, certificate.encode() or None, key.encode() or None)
