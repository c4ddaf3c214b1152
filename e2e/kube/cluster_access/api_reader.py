"""Reader of the API server over one connection. Why: tests read a few objects several times a
second, and each ``kubectl get`` takes 70 ms of a processor that the pods need too. All but plain
reads of known kinds go through kubectl."""

import http.client
import json
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fairlead.kube.resources import RESOURCES_BY_KIND, Resource
from fairlead.kube.transport.credentials import ClusterCredentials
from fairlead.kube.transport.kubeconfig import load_config
from fairlead.runtime.clock import SystemClock

RESOURCE_PATHS: Mapping[str, Resource] = {
    word: one for one in RESOURCES_BY_KIND.values() if one.namespaced for word in (one.plural, one.kind.lower())
}
"""Kinds by their names for ``kubectl``."""
TIMEOUT_SECONDS = 30.0
REREAD_SECONDS = 60.0


def path_of(namespace: str, words: tuple[str, ...]) -> str | None:
    """Returns the API path that answers ``kubectl get`` with these words; None for what only
    kubectl understands."""
    match words:
        case (kind,) if kind in RESOURCE_PATHS:
            return RESOURCE_PATHS[kind].path(namespace)
        case (kind, name) if kind in RESOURCE_PATHS and not name.startswith("-"):
            return RESOURCE_PATHS[kind].path(namespace, name)
        case (kind, "-l", labels) if kind in RESOURCE_PATHS:
            return f"{RESOURCE_PATHS[kind].path(namespace)}?labelSelector={quote(labels)}"
    return None


class ApiReader:
    """Reads as whom the environment's KUBECONFIG names."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        access = load_config(environ, Path.home())
        self._credentials = ClusterCredentials(access, SystemClock(), REREAD_SECONDS)
        self._server = urlsplit(access.server)
        self._one = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None

    def read(self, path: str) -> dict[str, Any]:
        """The object or the list there. Raises AssertionError with what the API server says, or why
        it says nothing."""
        with self._one:
            for first in (True, False):
                kept = self._connection is not None
                try:
                    status, body = self._get(path)
                    break
                except (OSError, http.client.HTTPException) as error:
                    self.close()
                    if not (first and kept):  # one that was kept may have been closed meanwhile
                        raise AssertionError(f"{path}: {error!r}") from error
        assert status == 200, f"{path}: {status} {body[:500]!r}"
        found: dict[str, Any] = json.loads(body)
        return found

    def _get(self, path: str) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = self._opened()
        self._connection.request(
            "GET", path, headers={"Accept": "application/json", **dict(self._credentials.headers())}
        )
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def _opened(self) -> http.client.HTTPConnection:
        host, port, tls = self._server.hostname or "", self._server.port, self._credentials.tls_context()
        if isinstance(tls, ssl.SSLContext):
            return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=tls)
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
