"""Watches models with kopf, in its own thread and event loop.

Why: decoded, a model takes up to 25 times its bytes. kopf decodes all models of a page, and holds
them until each is handled. Some 15 models of the largest size exceeded the operator's memory.

kopf gets the token with an expiration. So it logs in again in time, or when the API server rejects
the token.

Why: kopf keeps a token in memory. Service account tokens are rotated long before they expire (an
hour after creation, at the earliest).
"""

import asyncio
import base64
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import aiohttp
import kopf

from fairlead.errors import FairleadError
from fairlead.kube.json_decoding import decode_page
from fairlead.kube.resources import (
    MODEL_DEPLOYMENTS,
    Manifest,
)
from fairlead.kube.transport.kubeconfig import ClusterConfig, ClusterConfigError
from fairlead.runtime.clock import Clock
from fairlead.runtime.event_loop import loop_factory
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_operator.kube.object_trimming import trim_model
from fairlead_operator.kube.watches import ClusterWatcher

TOKEN_REFRESH_SECONDS = 1_200.0

MODELS_PER_PAGE = 16
"""Models in one page of kopf's list: at most 24 MiB, since etcd takes objects of about 1.5 MiB."""

RETRY_DELAYS_SECONDS = (0.5, 1.0, 2.0, 3.0, 5.0, 5.0, 5.0, 5.0)

_STOP_SECONDS = 10.0
_NAMESPACES_SECONDS = 1.0
_MAX_NESTING = 12_000
"""Levels of JSON that kopf decodes.

Why: the API server stores objects of 10,000 levels, and such an object would end kopf.
"""


def connection_info(access: ClusterConfig, wall: float) -> kopf.ConnectionInfo:
    """Returns the configuration for kopf.

    Raises ClusterConfigError for options that kopf lacks, or an unreadable token.

    wall: Unix seconds.
    """
    for value, name in ((access.server_name, "tls-server-name"), (access.impersonate_user, "as")):
        if value:
            raise ClusterConfigError(f"the operator cannot use {name} of a kubeconfig", field=name, hint="remove it")
    token = access.token
    if access.token_file is not None:
        try:
            token = access.token_file.read_text().strip()
        except OSError as error:
            raise ClusterConfigError(f"cannot read the token {access.token_file}: {error.strerror or error}") from error
    return kopf.ConnectionInfo(
        server=access.server,
        ca_path=access.ca_file,
        ca_data=_to_base64(access.ca_data),
        insecure=not access.verify_tls,
        scheme="Bearer" if token else None,
        token=token,
        certificate_path=access.certificate_file,
        certificate_data=_to_base64(access.certificate),
        private_key_path=access.key_file,
        private_key_data=_to_base64(access.key),
        default_namespace=access.namespace,
        expiration=None if access.token_file is None else _expiration(wall),
    )


def _expiration(wall: float) -> datetime:
    return datetime.fromtimestamp(wall, UTC) + timedelta(seconds=TOKEN_REFRESH_SECONDS)


def _to_base64(pem: bytes | None) -> str | None:
    return None if pem is None else base64.b64encode(pem).decode()


class TrimmedResponse(aiohttp.ClientResponse):
    """A response that decodes the models of a list one at a time, and trims each."""

    async def json(self, **options: Any) -> Any:
        """Returns the decoded body."""
        if self.status != 200 or not self.url.path.endswith(f"/{MODEL_DEPLOYMENTS.plural}"):
            return await super().json(**options)
        page = decode_page(await self.read(), MODEL_DEPLOYMENTS, trim_model)
        return {"metadata": page.metadata, "items": page.items}


def open_session(access: ClusterConfig, wall: float) -> kopf.AiohttpSession:
    """Returns a session with our credentials. kopf closes it, and opens another one in time.

    Raises ClusterConfigError for options that kopf lacks, or an unreadable token.

    wall: Unix seconds.
    """
    info = connection_info(access, wall)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        response_class=TrimmedResponse,
        proxy=access.proxy_url,
    )
    return kopf.AiohttpSession(
        server=info.server,
        default_namespace=info.default_namespace,
        expiration=info.expiration,
        aiohttp_session=session,
    )


class KopfWatch:
    """kopf's watch of models.

    Why a thread: kopf installs signal handlers and cancels foreign tasks in its loop.
    """

    def __init__(
        self, watcher: ClusterWatcher, config: ClusterConfig, clock: Clock, identity: str, namespaces: tuple[str, ...]
    ) -> None:
        self._watcher = watcher
        self._config = config
        self._clock = clock
        self._identity = identity
        self._namespaces = namespaces

    async def run(self) -> None:
        """Watches the models until cancelled. Raises an error if kopf ends, for whatever reason.

        kopf never again watches a namespace that has refused it. It is therefore started again when
        a namespace refuses lists, or can be listed again.
        """
        sys.setrecursionlimit(max(sys.getrecursionlimit(), _MAX_NESTING))
        while self._namespaces:
            namespaces = self._allowed_namespaces()
            watching = asyncio.ensure_future(self._run_kopf(namespaces) if namespaces else asyncio.Event().wait())
            try:
                while not watching.done() and self._allowed_namespaces() == namespaces:
                    await asyncio.wait({watching}, timeout=_NAMESPACES_SECONDS)
                if watching.done():
                    watching.result()
            finally:
                await cancel_and_wait(watching)
        await self._run_kopf(())

    def _allowed_namespaces(self) -> tuple[str, ...]:
        refused = self._watcher.refused_namespaces()
        return tuple(namespace for namespace in self._namespaces if namespace not in refused)

    async def _run_kopf(self, namespaces: tuple[str, ...]) -> None:
        """Runs kopf until it ends, which is an error.

        namespaces: watched namespaces; all if empty.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        stop = threading.Event()

        def on_event(type: str | None, model: Manifest) -> None:
            if not stop.is_set():
                loop.call_soon_threadsafe(self._watcher.on_model_event, type, model)

        def on_end(error: BaseException | None) -> None:
            if not ended.done():
                ended.set_exception(FairleadError(f"kopf has ended: {error or 'by itself'}"))

        def run() -> None:
            error: BaseException | None = None
            try:
                with asyncio.Runner(loop_factory=loop_factory()) as runner:
                    runner.run(self._operator(on_event, stop, namespaces))
            except Exception as caught:  # noqa: BLE001  # passed to the other thread
                error = caught
            if not stop.is_set():
                loop.call_soon_threadsafe(on_end, error)

        thread = threading.Thread(target=run, name="kopf", daemon=True)
        thread.start()
        try:
            await ended
        finally:
            stop.set()
            await asyncio.to_thread(thread.join, _STOP_SECONDS)

    async def _operator(
        self, on_event: Callable[[str | None, Manifest], None], stop: threading.Event, namespaces: tuple[str, ...]
    ) -> None:
        await kopf.operator(
            registry=self._handlers(on_event),
            settings=kopf_settings(),
            identity=cast(Any, self._identity),  # else kopf looks up our user name, which may not exist
            clusterwide=not namespaces,
            namespaces=namespaces,
            stop_flag=stop,
        )

    def _handlers(self, on_event: Callable[[str | None, Manifest], None]) -> kopf.OperatorRegistry:
        handlers, kind = kopf.OperatorRegistry(), MODEL_DEPLOYMENTS

        @kopf.on.login(registry=handlers)
        async def _login(**_: Any) -> kopf.AiohttpSession:
            return open_session(self._config, self._clock.wall())

        @kopf.on.event(kind.group, kind.version, kind.plural, registry=handlers)
        async def _event(event: kopf.RawEvent, **_: Any) -> None:
            raw = cast(Manifest, event["object"])  # `body` is a view of it that is slow to copy
            model = trim_model(raw)
            raw.clear()  # kopf keeps the event for seconds
            raw.update(model)
            on_event(event["type"], model)

        return handlers


def kopf_settings() -> kopf.OperatorSettings:
    """Returns settings without peering, event posting and discovery, which the operator does
    itself.
    """
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True  # the kinds are known; no permissions for CRDs and namespaces
    settings.watching.chunk_size = MODELS_PER_PAGE
    settings.networking.error_backoffs = RETRY_DELAYS_SECONDS
    settings.process.ultimate_exiting_timeout = None
    # For change handlers, which we do not have, kopf would copy every model at every event.
    settings.persistence.diffbase_storage = _NoDiffBaseStorage()
    settings.persistence.progress_storage = _NoProgressStorage()
    return settings


class _NoDiffBaseStorage(kopf.DiffBaseStorage):
    """A storage of former objects that stores nothing: the operator compares objects itself."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        return None


class _NoProgressStorage(kopf.ProgressStorage):
    """A storage of handlers' progress that stores nothing: there are no kopf handlers with
    progress.
    """

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
