"""The index beside the request's way: prompts that workers sent and engines' changes in, corrections for workers out.

    workers ──Seen, Given──▶ ModelIndex ◀──changes── Source (an indexer here, or Redis)
       ▲                        │
       └──────Corrected─────────┘   gathered for a twentieth of a second

Nothing waits for it. What does not reach a worker is told to all of them anew a second later, from what is true then.
"""

import asyncio
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import msgspec

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet, Instance, InstanceState, Role
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.http_client import fetch
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_gateway.ipc.channel import encode_message
from fairlead_gateway.ipc.messages import IndexCorrections, IndexReport, PromptDispatched, PromptSamples, SampleRequest
from fairlead_gateway.prefix_map.prompt_alignment import PromptAlignment
from fairlead_gateway.routing.prefix.prefix_hash import block_ends
from fairlead_gateway.supervisor.kv_index.local_tokenizer import LocalTokenizer, Tokenization
from fairlead_gateway.supervisor.kv_index.model_index import ModelIndex
from fairlead_gateway.supervisor.kv_index.token_fetcher import TokenFetcher
from fairlead_gateway.supervisor.kv_index.token_source import TokenSource
from fairlead_gateway.supervisor.kv_index.tokenize_api import MODELS_PATH, TOKENIZE_PATH, TokenizeQuery, numbers_before
from fairlead_gateway.supervisor.peers.hot_prefix_counter import HotShare
from fairlead_gateway.telemetry.status_types import ModelIndexStatus
from fairlead_kvstore.analysis.replication_hints import ReplicationHint
from fairlead_kvstore.blockstore.changes import Change

if TYPE_CHECKING:  # what reads engines is loaded when one tells what it holds
    from fairlead_gateway.supervisor.kv_index.index_source import IndexSource

_SWEEP_SECONDS: Final = 1.0


class WorkerConnection(Protocol):
    """One worker's end of the channel."""

    def send(self, message: msgspec.Struct) -> bool:
        """False when it was dropped."""
        ...

    def send_encoded(self, message: bytes) -> bool:
        """The same, encoded once for several."""
        ...


IndexSourceFactory: TypeAlias = (
    "Callable[[Callable[[str, Sequence[Change]], None], Callable[[str], None]], IndexSource]"
)
"""From what hears of changes of a model, and what hears that its mirror is another now, to a source."""


class AlignmentStoreLike(Protocol):
    """As ``links.kept.KeptLinks``."""

    @property
    def received(self) -> Mapping[str, int]:
        """Prompts of each model that were learned elsewhere."""
        ...

    @property
    def unreadable(self) -> int:
        """Entries that nobody could have written so."""
        ...

    def start(self) -> None:
        """Begin on the running loop."""
        ...

    def set_models(self, models: Iterable[str]) -> None:
        """Keep the links of these models."""
        ...

    def offer(self, model: str, lesson: PromptAlignment) -> None:
        """A prompt was learned here."""
        ...

    def delete_model(self, model: str) -> None:
        """What was learned is wrong."""
        ...

    async def stop(self) -> None:
        """Write what waits and end."""
        ...


AlignmentStoreFactory: TypeAlias = Callable[[Callable[[str, PromptAlignment], None]], AlignmentStoreLike]
"""From what takes lessons of others to what keeps ours."""


class KvIndexService:
    """The KV-cache index of all models.

    - workers: returns the workers that serve.
    - create_source: called when the fleet has its first engine with KV events.
    - create_store: returns the store of prompt alignments that outlives this gateway; None: there
      is none.
    """

    def __init__(
        self,
        *,
        workers: Callable[[], Sequence[WorkerConnection]],
        create_source: IndexSourceFactory,
        tokenization: Tokenization,
        secret: bytes,
        clock: Clock,
        limits: Limits,
        credentials: EngineCredentials | None,
        create_store: AlignmentStoreFactory | None = None,
    ) -> None:
        self._workers = workers
        self._create_source = create_source
        self._tokenization = tokenization
        self._secret = secret
        self._clock = clock
        self._limits = limits
        self._credentials = credentials or EngineCredentials({}, clock.now)
        self._create_store = create_store
        self._store: AlignmentStoreLike | None = None
        self._source: IndexSource | None = None
        self._fleet = Fleet()
        self._instances: dict[str, Instance] = {}
        self._models: dict[str, ModelIndex] = {}
        self._token_fetchers: dict[str, TokenFetcher] = {}
        self._changed_models: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._resend_all = False
        self.dropped = 0
        self.hot_prefixes: Callable[[str], Sequence[HotShare]] = lambda _: ()
        """The hot prefixes of a model; none are known where no gateways count them together."""

    # --- life -----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="tell workers of the index")
        self.update_fleet(self._fleet)

    async def stop(self) -> None:
        """Read and tell no more."""
        task, self._task = self._task, None
        await cancel_and_wait(task)
        for asking in self._token_fetchers.values():
            asking.close()
        if self._store is not None:
            await self._store.stop()
            self._store = None
        if self._source is not None:
            await self._source.close()
            self._source = None

    def update_fleet(self, fleet: Fleet) -> None:
        """What there is now."""
        self._fleet = fleet
        self._instances = {one.id: one for ones in fleet.instances.values() for one in ones}
        is_enabled = self._tokenization.source is not TokenSource.OFF and self._task is not None
        if self._source is None and is_enabled and any(one.kv_events for one in self._instances.values()):
            self._source = self._create_source(self._on_changes, self._on_reload)
            if self._create_store is not None:
                self._store = self._create_store(self._on_peer_alignment)
                self._store.start()
        if self._source is not None:
            self._source.update_fleet(fleet)
        if self._store is not None:
            self._store.set_models(key for key, ones in fleet.instances.items() if any(one.kv_events for one in ones))
        for gone in self._models.keys() - fleet.models.keys():
            del self._models[gone]
            asking = self._token_fetchers.pop(gone, None)
            if asking is not None:
                asking.close()
        for key, model in self._models.items():
            model.retain([one.id for one in fleet.instances.get(key, ())])

    # --- what comes in --------------------------------------------------------------------------------------------------

    def on_report(self, worker: WorkerConnection, message: IndexReport | PromptSamples) -> None:
        """A worker tells what it sent and how that ended, or what it was asked for."""
        if self._source is None:
            return
        if isinstance(message, PromptSamples):
            asking = self._token_fetchers.get(message.model)
            if asking is not None:
                for sample in message.samples:
                    asking.on_sample(sample, self._instances)
            return
        self.dropped += message.dropped
        wanted: dict[str, list[int]] = {}
        now = self._clock.now()
        for row in message.dispatched:
            model = self._model_index(row.model)
            if model is None:
                continue
            hashes = array("Q", row.hashes)
            if model.on_dispatch(row.instance, row.tail, hashes, block_ends(len(hashes)), row.size, now):
                asking = self._token_fetchers.get(row.model)
                if asking is not None and asking.should_fetch(row):
                    wanted.setdefault(row.model, []).append(row.tail)
            self._changed_models.add(row.model)
        for end in message.finished:
            model = self._models.get(end.model)
            if model is not None:
                model.on_finish(end, now)
                self._changed_models.add(end.model)
        for key, tails in wanted.items():
            worker.send(SampleRequest(key, tails))
        self._wake.set()

    def on_peer_dispatch(self, model_key: str, instance: str, tail: int, hashes: Sequence[int]) -> None:
        """Another gateway sent a prompt there."""
        model = self._model_index(model_key)
        if model is not None:
            model.bridge.on_dispatch(instance, tail, hashes, self._clock.now(), reports_end=False)

    def on_worker_ready(self) -> None:
        """A worker knows nothing yet."""
        self._resend_all = True
        self._wake.set()

    # --- for people -----------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, ModelIndexStatus]:
        """How far each model is followed; empty where no engine tells what it holds."""
        if self._source is None:
            return {}
        found = {}
        for key in self._fleet.models:
            model = self._model_index(key)
            if model is not None and any(one.kv_events is not None for one in self._fleet.instances.get(key, ())):
                stale, table = self._source.stale_reason(key), model.bridge.table
                model.run_census(self._clock.now(), stale)
                instances = {one.id: model.status(one.id, stale) for one in self._fleet.instances[key]}
                how, wanted = self._describe_alignment(key), tuple(self.hints(key))
                found[key] = ModelIndexStatus(
                    instances, len(table), table.lowered_links, table.learned_prompts, how, wanted
                )
        return found

    def hints(self, key: str) -> list[ReplicationHint]:
        """Which of the model's hot prefixes want another home. Prefixes that are not linked are not judged."""
        model = self._models.get(key)
        ready = [
            one.id
            for one in self._fleet.instances.get(key, ())
            if one.state is InstanceState.READY and one.role is not Role.PREFILL
        ]
        return [] if model is None else model.hints(self.hot_prefixes(key), ready)

    def warnings(self) -> list[str]:
        """What is missing or degraded, in words."""
        if self._source is None:
            return []
        found = self._source.warnings()
        if self._store is not None and self._store.unreadable:
            found.append(
                f"{self._store.unreadable} entries of links in Redis were passed over: damaged, or another secret's"
            )
        for key, model in self._models.items():
            out = [one for one in model.quarantined() if one in self._instances]
            if out:
                found.append(
                    f"{key}: the index of {len(out)} instances is in quarantine: {out[0]}: {model.quarantine_reason(out[0])}"
                )
        return found

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _model_index(self, key: str) -> ModelIndex | None:
        model = self._models.get(key)
        if model is None and self._source is not None and key in self._fleet.models:
            mirror = self._source.mirror(key)
            model = self._models[key] = ModelIndex(
                key, mirror, secret=self._secret, limits=self._limits, on_relearn=partial(self._on_alignment_reset, key)
            )
            learn = partial(self._learn_tokens, key)
            here = None
            way = self._tokenization
            if way.source is TokenSource.PROCESS and way.tokenize is not None:
                here = LocalTokenizer(way.tokenize, way.folder, key, self._clock, self._limits)
            self._token_fetchers[key] = TokenFetcher(self._post_to_engine, learn, self._clock, self._limits, here)
        return model

    def _describe_alignment(self, key: str) -> str:
        asking, keeper = self._token_fetchers.get(key), self._store
        words = "off" if asking is None else asking.description
        taken = 0 if keeper is None else keeper.received.get(key, 0)
        return f"{words}; {taken} prompts were learned by other gateways or before" if taken else words

    def _on_alignment_reset(self, key: str) -> None:
        if self._store is not None:
            self._store.delete_model(key)

    def _on_peer_alignment(self, key: str, lesson: PromptAlignment) -> None:
        """Learned by another gateway, or before this one started."""
        model = self._model_index(key)
        if model is not None:
            model.bridge.add_alignment(lesson)
            self._changed_models.add(key)
            self._wake.set()

    def _on_changes(self, model_key: str, changes: Sequence[Change]) -> None:
        model = self._model_index(model_key)
        if model is not None:
            model.on_changes(changes)
            self._changed_models.add(model_key)
            self._wake.set()

    def _on_reload(self, model_key: str) -> None:
        model = self._model_index(model_key)
        if model is not None and self._source is not None:
            model.bridge.set_index(self._source.mirror(model_key))
            self._changed_models.add(model_key)
            self._wake.set()

    def _learn_tokens(
        self,
        key: str,
        row: PromptDispatched,
        tokens: Sequence[int],
        query: TokenizeQuery,
        adapter: str | None,
        *,
        doubted: bool,
    ) -> int | None:
        model = self._models.get(key)
        if model is None:
            return 0
        hashes = array("Q", row.hashes)
        ends = block_ends(len(hashes))
        exact = numbers_before(query.text, ends) if query.text else None
        done = model.bridge.learn(
            hashes,
            ends,
            tokens,
            size=row.size,
            salt=query.salt,
            adapter=adapter,
            token_ends=exact,
            is_unverified=doubted,
        )
        if done and self._store is not None and model.bridge.block_size is not None:
            lesson = model.bridge.table.alignment(hashes, model.bridge.block_size)
            if lesson is not None:
                self._store.offer(key, lesson)
        self._changed_models.add(key)
        self._wake.set()
        return done

    async def _post_to_engine(self, instance: Instance, body: bytes | None) -> bytes:
        return await fetch(
            instance.url.rstrip("/") + (MODELS_PATH if body is None else TOKENIZE_PATH),
            timeout_seconds=self._limits.tokenize_response_seconds,
            max_bytes=self._limits.tokenize_response_bytes,
            tls_context=partial(self._credentials.tls_context, instance.access),
            headers=self._credentials.headers(instance.access),
            json_body=body,
        )

    async def _run(self) -> None:
        """Gather, tell, and now and then look at every model: what was on its way ends without a word."""
        while True:
            try:
                async with asyncio.timeout(_SWEEP_SECONDS):
                    await self._wake.wait()
                await asyncio.sleep(self._limits.prefix_map_correction_seconds)
            except TimeoutError:
                self._changed_models.update(self._models)
            self._wake.clear()
            if self._resend_all:
                self._resend_all = False
                for key, model in self._models.items():
                    model.bridge.resend_all()
                    self._changed_models.add(key)
            busy, self._changed_models = self._changed_models, set()
            for key in busy:
                self._send_corrections(key)
                await asyncio.sleep(0)

    def _send_corrections(self, key: str) -> None:
        model = self._models.get(key)
        if model is None:
            return
        found = model.corrections(self._clock.now())
        if not found:
            return
        self._changed_models.add(key)  # there may be more
        self._wake.set()
        message = encode_message(IndexCorrections(key, found))
        for worker in self._workers():
            if not worker.send_encoded(message):
                asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self.on_worker_ready)
