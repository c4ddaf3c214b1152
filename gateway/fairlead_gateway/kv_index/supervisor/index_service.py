"""The KV-cache index of all models: dispatches and engine changes in, corrections for workers out.

    workers ──WorkerReport, PromptSamples──▶ ModelIndex ◀──changes── EventReader (engines)
       ▲                                       │
       └────────────IndexCorrections───────────┘   collected for a twentieth of a second

No request waits for it. If a correction does not reach a worker, all workers get new ones a second
later, from the state at that time.
"""

import asyncio
import logging
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet, Instance
from fairlead.runtime.clock import Clock
from fairlead.runtime.http_client import fetch
from fairlead.runtime.tasks import cancel_and_wait, run_despite_defects
from fairlead_gateway.ipc.channel import encode_message
from fairlead_gateway.kv_index.links import PromptLinks
from fairlead_gateway.kv_index.messages import (
    PREFIX_MAP_CORRECTION_SECONDS,
    IndexCorrections,
    PromptFinished,
    PromptSamples,
    SampleRequest,
)
from fairlead_gateway.kv_index.supervisor.event_discovery import EventDiscovery
from fairlead_gateway.kv_index.supervisor.model_index import ModelIndex
from fairlead_gateway.kv_index.supervisor.token_fetcher import TokenFetcher, TokenSource
from fairlead_gateway.kv_index.supervisor.tokenize_api import (
    MODELS_PATH,
    TOKENIZE_PATH,
    TOKENIZE_RESPONSE_BYTES,
    TokenizeQuery,
    max_tokenize_response_bytes,
    numbers_before,
)
from fairlead_gateway.peers.messages import Dispatch
from fairlead_gateway.routing.prefix.prefix_hash import block_ends
from fairlead_gateway.supervisor.worker_handle import WorkerHandle
from fairlead_gateway.telemetry.status_types import ModelIndexStatus
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.reader.engine_info_client import HttpEngineQuery

if TYPE_CHECKING:  # imported for the first indexed model
    from fairlead_gateway.kv_index.supervisor.event_reader import EventReader
    from fairlead_gateway.kv_index.supervisor.link_store import LinkStore
    from fairlead_kvstore.fleet_reader import ChangeSink

TOKENIZE_RESPONSE_SECONDS: Final = 5.0
"""Limit: an engine's response with a prompt's tokens."""

_SWEEP_SECONDS: Final = 1.0


_log = logging.getLogger("fairlead.gateway")


def _count_models(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{len(keys)} models ({keys[0]}, …)"


class KvIndexService:
    """The KV-cache index of all models.

    - workers: returns the workers that serve.
    - create_reader: called for the first indexed model, with this service, which takes changes, and
      a callback after a model was restored.
    - create_store: called then too, with a callback for the links that another gateway learned.
      None without a Redis.
    - on_indexed: called with the models that are indexed from now on.
    """

    def __init__(
        self,
        *,
        workers: Callable[[], Sequence[WorkerHandle]],
        create_reader: "Callable[[ChangeSink, Callable[[str], None]], EventReader]",
        create_store: "Callable[[Callable[[str, PromptLinks], None]], LinkStore] | None",
        on_indexed: Callable[[Sequence[str]], None],
        token_source: TokenSource,
        secret: bytes,
        clock: Clock,
        credentials: EngineCredentials | None,
    ) -> None:
        self._workers = workers
        self._create_reader = create_reader
        self._create_store = create_store
        self._on_indexed = on_indexed
        self._token_source = token_source
        self._secret = secret
        self._clock = clock
        self._credentials = credentials or EngineCredentials({}, clock.now)
        self._store: LinkStore | None = None
        self._reader: EventReader | None = None
        self._fleet = Fleet()
        self._instances: dict[str, Instance] = {}
        self._discovery = EventDiscovery(HttpEngineQuery(self._credentials), self._on_found)
        self._found_models: set[str] = set()
        self._indexed_models: dict[str, None] = {}
        self._models: dict[str, ModelIndex] = {}
        self._token_fetchers: dict[str, TokenFetcher] = {}
        self._changed_models: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._resend_all = False

    # --- lifecycle

    def start(self) -> None:
        """Starts on the running loop."""
        work = run_despite_defects(self._run, _log, "corrections of the KV-cache index")
        self._task = asyncio.get_running_loop().create_task(work, name="corrections of the KV-cache index")
        self.update_fleet(self._fleet)

    async def stop(self) -> None:
        """Stops reading and sending."""
        task, self._task = self._task, None
        await cancel_and_wait(task)
        await self._discovery.stop()
        for fetcher in self._token_fetchers.values():
            fetcher.close()
        if self._store is not None:
            await self._store.stop()
            self._store = None
        if self._reader is not None:
            await self._reader.close()
            self._reader = None

    @property
    def indexed_models(self) -> Sequence[str]:
        return () if self._token_source is TokenSource.OFF else tuple(self._indexed_models)

    def update_fleet(self, fleet: Fleet) -> None:
        """Takes over a new fleet. Creates reader and store at the first indexed model."""
        self._fleet = fleet
        self._instances = {instance.id: instance for group in fleet.instances.values() for instance in group}
        self._update_indexed_models()
        for key in self._models.keys() - fleet.models.keys():
            del self._models[key]
            self._token_fetchers.pop(key).close()
        for key, model in self._models.items():
            model.retain([instance.id for instance in fleet.instances.get(key, ())])

    def _update_indexed_models(self) -> None:
        """Takes over which models are indexed: those of which an instance states KV events, and
        those with an engine that was found to publish them.
        """
        fleet, before = self._fleet, self._indexed_models
        self._found_models &= fleet.models.keys()
        self._indexed_models = dict.fromkeys(
            key
            for key in fleet.models
            if key in self._found_models
            or any(instance.kv_events is not None for instance in fleet.instances.get(key, ()))
        )
        models = self.indexed_models
        if self._reader is None and self._task is not None and models:
            self._reader = self._create_reader(self, self._on_restored)
            if self._create_store is not None:
                self._store = self._create_store(self._on_peer_links)
                self._store.start()
        if self._reader is not None:
            self._reader.update_fleet(fleet, models)
        if self._store is not None:
            self._store.set_models(models)
        if self._task is not None and self._token_source is not TokenSource.OFF:
            rest = [key for key in fleet.models if key not in self._indexed_models]
            self._discovery.set_models({key: fleet.instances.get(key, ()) for key in rest})
        if self._indexed_models != before:
            self._on_indexed(models)

    def _on_found(self, key: str) -> None:
        if key in self._fleet.models:
            self._found_models.add(key)
            self._update_indexed_models()

    # --- input

    def on_samples(self, message: PromptSamples) -> None:
        """Called with prompts that were requested from a worker."""
        fetcher = self._token_fetchers.get(message.model)
        if fetcher is not None:
            for sample in message.samples:
                fetcher.on_sample(sample, self._instances)

    def on_report(
        self, worker: WorkerHandle, dispatches: Sequence[Dispatch], prompt_ends: Sequence[PromptFinished]
    ) -> None:
        """Called with a worker's report of sent and finished prompts."""
        if self._reader is None:
            return
        wanted: dict[str, list[int]] = {}
        now = self._clock.now()
        for row in dispatches:
            model = self._model_index(row.model) if row.size else None
            if model is None:
                continue
            hashes = array("Q", row.hashes)
            has_unlinked = model.on_dispatch(row.instance, row.tail, hashes, block_ends(len(hashes)), row.size, now)
            if has_unlinked and self._token_fetchers[row.model].should_fetch(row):
                wanted.setdefault(row.model, []).append(row.tail)
            self._changed_models.add(row.model)
        for end in prompt_ends:
            model = self._models.get(end.model)
            if model is not None:
                model.on_finish(end, now)
                self._changed_models.add(end.model)
        for key, tails in wanted.items():
            worker.send(SampleRequest(key, tails))
        self._wake.set()

    def on_peer_dispatch(self, model_key: str, instance: str, tail: int, hashes: Sequence[int]) -> None:
        """Called when another gateway sent a prompt to the instance."""
        model = self._model_index(model_key)
        if model is not None:
            model.translator.on_dispatch(instance, tail, hashes, self._clock.now(), reports_end=False)

    def on_worker_ready(self) -> None:
        self._resend_all = True
        self._wake.set()

    # --- status

    def status(self) -> dict[str, ModelIndexStatus]:
        """Returns the state of the index by model; empty where no engine has KV events."""
        if self._reader is None:
            return {}
        statuses = {}
        for key in self._fleet.models:
            model = self._model_index(key)
            group = self._fleet.instances.get(key, ())
            if model is not None and key in self._indexed_models:
                table = model.translator.table
                model.run_census(self._clock.now())
                instances = {instance.id: model.status(instance.id) for instance in group}
                how = self._describe_links(key)
                statuses[key] = ModelIndexStatus(instances, len(table), table.lowered_links, table.learned_prompts, how)
        return statuses

    def warnings(self) -> list[str]:
        """Returns texts that say what is missing or degraded."""
        reader, warnings = self._reader, []
        if self._token_source is TokenSource.OFF and self._indexed_models:
            models = _count_models(list(self._indexed_models))
            warnings.append(f"the index of {models} is not used, since FAIRLEAD_LINKS is off")
        if reader is not None and reader.other_secret:
            models = _count_models(sorted(reader.other_secret))
            warnings.append(f"the index of {models} in Redis is not used, since it was written with another secret")
        if reader is not None:
            warnings += reader.warnings()
        if self._store is not None and self._store.unreadable:
            warnings.append(
                f"the links of {self._store.unreadable} prompts in Redis were skipped: "
                "they are damaged or were written with another secret"
            )
        for key, model in self._models.items():
            out = [item for item in model.quarantined().items() if item[0] in self._instances]
            if out:
                warnings.append(f"{key}: the index of {len(out)} instances is in quarantine: {': '.join(out[0])}")
        return warnings

    # --- internal

    def _model_index(self, key: str) -> ModelIndex | None:
        model = self._models.get(key)
        if model is None and self._reader is not None and key in self._fleet.models:
            on_relearn = partial(self._delete_stored_links, key)
            model = ModelIndex(key, self._reader.blocks(key), secret=self._secret, on_relearn=on_relearn)
            self._models[key] = model
            learn = partial(self._learn_tokens, key)
            self._token_fetchers[key] = TokenFetcher(self._post_to_engine, learn, self._clock)
        return model

    def _mark_changed(self, key: str) -> None:
        self._changed_models.add(key)
        self._wake.set()

    def _describe_links(self, key: str) -> str:
        text, store = self._token_fetchers[key].description, self._store
        received = 0 if store is None else store.received.get(key, 0)
        return f"{text}; {received} prompts were learned by other gateways or before" if received else text

    def _delete_stored_links(self, key: str) -> None:
        if self._store is not None:
            self._store.delete_model(key)

    def _on_peer_links(self, key: str, links: PromptLinks) -> None:
        """Adds the links of a prompt from another gateway, or from an earlier run of this one."""
        model = self._model_index(key)
        if model is not None:
            model.translator.add_links(links)
            self._mark_changed(key)

    def offer(self, model_key: str, changes: Sequence[Change], batches: int = 1) -> None:
        """Takes changes of the blocks of a model from the reader, which already has them."""
        model = self._model_index(model_key)
        if model is not None:
            model.on_changes(changes)
            self._mark_changed(model_key)

    def _on_restored(self, model_key: str) -> None:
        model = self._model_index(model_key)
        if model is not None:
            model.translator.resend_all()
            self._mark_changed(model_key)

    def _learn_tokens(
        self, key: str, row: Dispatch, tokens: Sequence[int], query: TokenizeQuery, adapter: str | None
    ) -> int | None:
        model = self._models.get(key)
        if model is None:
            return 0
        hashes, translator = array("Q", row.hashes), model.translator
        ends = block_ends(len(hashes))
        blocks = translator.learn(
            hashes,
            ends,
            tokens,
            size=row.size,
            salt=query.salt,
            adapter=adapter,
            token_ends=numbers_before(query.text, ends) if query.text else None,
        )
        if blocks and self._store is not None and translator.block_size is not None:
            links = translator.table.links_of(hashes, translator.block_size)
            if links is not None:
                self._store.offer(key, links)
        self._mark_changed(key)
        return blocks

    async def _post_to_engine(self, instance: Instance, body: bytes | None) -> bytes:
        limit = TOKENIZE_RESPONSE_BYTES
        return await fetch(
            instance.url.rstrip("/") + (MODELS_PATH if body is None else TOKENIZE_PATH),
            timeout_seconds=TOKENIZE_RESPONSE_SECONDS,
            max_bytes=limit if body is None else max_tokenize_response_bytes(body, limit),
            rules=self._credentials.connection_rules(instance),
            headers=self._credentials.headers(instance.access),
            json_body=body,
        )

    async def _run(self) -> None:
        """Sends corrections of changed models; after an idle second, of all models."""
        while True:
            try:
                async with asyncio.timeout(_SWEEP_SECONDS):
                    await self._wake.wait()
                await asyncio.sleep(PREFIX_MAP_CORRECTION_SECONDS)
            except TimeoutError:
                self._changed_models.update(self._models)
            self._wake.clear()
            if self._resend_all:
                self._resend_all = False
                for key, model in self._models.items():
                    model.translator.resend_all()
                    self._changed_models.add(key)
            changed, self._changed_models = self._changed_models, set()
            for key in changed:
                self._send_corrections(key)
                await asyncio.sleep(0)

    def _send_corrections(self, key: str) -> None:
        model = self._models.get(key)
        if model is None:
            return
        corrections = model.corrections(self._clock.now())
        if corrections or model.translator.is_resending:
            self._mark_changed(key)  # there may be more
        if not corrections:
            return
        message = encode_message(IndexCorrections(key, corrections))
        for worker in self._workers():
            if not worker.send_encoded(message):
                asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self.on_worker_ready)
