"""Kopf watch."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, cast

import kopf

from fairlead.errors import FairleadError
from fairlead.kube.resources import (
    MODEL_DEPLOYMENTS,
    Manifest,
)
from fairlead.kube.transport.kubeconfig import ClusterConfig
from fairlead.runtime.clock import Clock
from fairlead.runtime.event_loop import loop_factory
from fairlead_operator.kube.kopf_login import connection_info
from fairlead_operator.kube.watches import ClusterWatcher

RETRY_DELAYS_SECONDS = (0.5, 1.0, 2.0, 3.0, 5.0, 5.0, 5.0, 5.0)


_STOP_SECONDS = 10.0


class KopfWatch:
    """kopf, in a thread and a loop of its own: it takes signals and cancels tasks that are not its own wherever it runs."""

    def __init__(
        self, watcher: ClusterWatcher, config: ClusterConfig, clock: Clock, identity: str, namespaces: tuple[str, ...]
    ) -> None:
        self._watcher = watcher
        self._config = config
        self._clock = clock
        self._identity = identity
        self._namespaces = namespaces

    async def run(self) -> None:
        """Watch the models until cancelled. Raises what ends kopf; that it ends at all is an error."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        stop = threading.Event()

        def heard(type: str | None, model: Manifest) -> None:
            if not stop.is_set():
                loop.call_soon_threadsafe(self._watcher.on_model_event, type, model)

        def told(error: BaseException | None) -> None:
            if not over.done():
                over.set_exception(FairleadError(f"kopf has ended: {error or 'by itself'}"))

        def run() -> None:
            error: BaseException | None = None
            try:
                with asyncio.Runner(loop_factory=loop_factory()) as runner:
                    runner.run(self._operator(heard, stop))
            except Exception as found:  # noqa: BLE001  # told to the other thread
                error = found
            if not stop.is_set():
                loop.call_soon_threadsafe(told, error)

        thread = threading.Thread(target=run, name="kopf", daemon=True)
        thread.start()
        try:
            await over
        finally:
            stop.set()
            await asyncio.to_thread(thread.join, _STOP_SECONDS)

    async def _operator(self, heard: Callable[[str | None, Manifest], None], stop: threading.Event) -> None:
        await kopf.operator(
            registry=self._handlers(heard),
            settings=kopf_settings(),
            identity=cast(Any, self._identity),  # else it asks for the name of our user, which need not have one
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=stop,
        )

    def _handlers(self, heard: Callable[[str | None, Manifest], None]) -> kopf.OperatorRegistry:
        handlers, kind = kopf.OperatorRegistry(), MODEL_DEPLOYMENTS

        @kopf.on.login(registry=handlers)
        async def _login(**_: Any) -> kopf.ConnectionInfo:
            return connection_info(self._config, self._clock.wall())

        @kopf.on.event(kind.group, kind.version, kind.plural, registry=handlers)
        async def _event(event: kopf.RawEvent, **_: Any) -> None:
            heard(
                event["type"], cast(Manifest, event["object"])
            )  # as it came: `body` is a view of it, and slow to copy

        return handlers


def kopf_settings() -> kopf.OperatorSettings:
    """kopf without what is ours to do: peering, posting of events, looking for kinds and namespaces."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True  # the kinds are known; roles for CRDs and namespaces are not needed
    settings.networking.error_backoffs = RETRY_DELAYS_SECONDS
    settings.process.ultimate_exiting_timeout = None
    # What it would compare and keep for handlers of changes, of which there are none: a copy of every model at every event.
    settings.persistence.diffbase_storage = _NoDiffBaseStorage()
    settings.persistence.progress_storage = _NoProgressStorage()
    return settings


class _NoDiffBaseStorage(kopf.DiffBaseStorage):
    """Nothing is compared."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        return None


class _NoProgressStorage(kopf.ProgressStorage):
    """Nothing is under way."""

    def fetch(self, **_: Any) -> kopf.ProgressRecord | None:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence
