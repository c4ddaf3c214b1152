"""The revocation list of a cluster: a ConfigMap, followed by an informer.

Why a ConfigMap: the kubelet brings a change of a Secret to a pod within about a minute, and a watch
within milliseconds. To watch a Secret, the gateway would need a right to read it with all its
entries, one of which is a key. Digests are no secret: ModelTenants show them, too.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from fairlead.kube.client import KubeApi
from fairlead.kube.field_managers import CHANGED_BY_ANNOTATION, last_author
from fairlead.kube.informer import Informer, InformerStep, log_failures_once
from fairlead.kube.resources import CONFIG_MAPS, Manifest, ObjectSelection, metadata_of
from fairlead.kube.store import ObjectStore
from fairlead.kube.transport.kubeconfig import load_config
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead.limits import Limits
from fairlead.runtime.clock import Pacing
from fairlead.runtime.tasks import cancel_and_wait
from fairlead.tenants.documents import REVOKED_ENTRY, describe_wrong_lines, parse_revocations

_log: Final = logging.getLogger("fairlead.gateway")


class RevocationWatch:
    """The digests of one ConfigMap. It closes `api` when it ends.

    digests: those of all good lines. A list that is deleted or cannot be read changes nothing, and
        one that does not exist yet is an empty one.
    author: who changed the list last.
    is_loaded: whether the list was read once, or cannot be read.
    """

    def __init__(self, api: KubeApi, namespace: str, name: str, pacing: Pacing) -> None:
        self._api = api
        self._place = f"the ConfigMap {namespace}/{name}"
        self._on_change: Callable[[], None] = lambda: None
        self._tasks: list[asyncio.Task[None]] = []
        self._content_problem: str | None = None
        self._has_failed = False
        self._log_failure = log_failures_once(_log, CONFIG_MAPS, lambda: self._informer.problem)
        self.digests: frozenset[bytes] = frozenset()
        self.author = "the cluster"
        self._informer = Informer(
            api,
            ObjectSelection(CONFIG_MAPS, namespace, fields=f"metadata.name={name}"),
            pacing,
            store=ObjectStore(_trim),
            on_change=self._on_event,
            report=self._on_step,
        )

    @property
    def is_loaded(self) -> bool:
        return self._informer.is_synced or self._informer.problem is not None

    @property
    def problem(self) -> str | None:
        """The lines that are no digests, or why the list cannot be read; None if all is well."""
        error = self._informer.problem
        if error is not None:
            return f"cannot watch {self._place}; the last list of revoked keys stays: {error}"
        return self._content_problem

    async def start(self, on_change: Callable[[], None]) -> None:
        """Starts following the list."""
        self._on_change = on_change
        self._tasks = [asyncio.create_task(self._informer.run()), asyncio.create_task(self._report_sync())]

    async def stop(self) -> None:
        """Stops, and closes the client."""
        for task in self._tasks:
            await cancel_and_wait(task)
        await self._api.close()

    async def _report_sync(self) -> None:
        await self._informer.wait_synced()
        self._on_change()

    def _on_step(self, step: InformerStep) -> None:
        """Logs a failure. The gateway no longer waits for the list after the first one."""
        self._log_failure(step)
        if self._informer.problem is not None and not self._has_failed:
            self._has_failed = True
            self._on_change()

    def _on_event(self, event: WatchEvent) -> None:
        if event.type is WatchEventType.DELETED:
            self._content_problem = f"{self._place} was deleted; the last list of revoked keys stays"
        else:
            self.digests, wrong = parse_revocations(str((event.object.get("data") or {}).get(REVOKED_ENTRY) or ""))
            self._content_problem = describe_wrong_lines(self._place, wrong)
            self.author = metadata_of(event.object)["annotations"][CHANGED_BY_ANNOTATION]
        if self._informer.is_synced:
            self._on_change()


def open_revocation_watch(environ: Mapping[str, str], name: str, pacing: Pacing, limits: Limits) -> RevocationWatch:
    """Returns the revocation list of the gateway's namespace. Raises BadInput without a cluster."""
    access = load_config(environ, Path(environ.get("HOME", "/")))
    api = KubeApi(access, pacing.clock, pacing.chance, agent="fairlead-gateway", limits=limits)
    return RevocationWatch(api, access.namespace, name, pacing)


def _trim(manifest: Manifest) -> Manifest:
    """Keeps what identifies the object, the list, and who changed it last."""
    kept = ("name", "namespace", "uid", "resourceVersion")
    metadata = {key: value for key, value in metadata_of(manifest).items() if key in kept}
    metadata["annotations"] = {CHANGED_BY_ANNOTATION: last_author(manifest)}
    data = {key: value for key, value in (manifest.get("data") or {}).items() if key == REVOKED_ENTRY}
    return {
        **{key: manifest[key] for key in ("apiVersion", "kind") if key in manifest},
        "metadata": metadata,
        "data": data,
    }
