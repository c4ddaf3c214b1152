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

from fairlead.clock import Clock
from fairlead.fleet import Fleet, Instance, InstanceState, Role
from fairlead.limits import Limits
from fairlead.tasks import ended
from fairlead_gateway.channel import encoded
from fairlead_gateway.channel_messages import Corrected, Given, Seen, SentRow, Want
from fairlead_gateway.hot_counts import HotShare
from fairlead_gateway.indexing.asking import Asking
from fairlead_gateway.indexing.here import Here, Tokenize
from fairlead_gateway.indexing.links import Links
from fairlead_gateway.indexing.model_index import ModelIndex
from fairlead_gateway.indexing.tokens import MODELS_PATH, PATH, Asked, reaches
from fairlead_gateway.management.fetch import get
from fairlead_gateway.reach import Reach
from fairlead_gateway.routing.prefix import block_ends
from fairlead_gateway.telemetry.index import ModelLook
from fairlead_kvstore.index.hints import Hint
from fairlead_kvstore.links.lesson import Lesson
from fairlead_kvstore.truth.changes import Change

if TYPE_CHECKING:  # what reads engines is loaded when one tells what it holds
    from fairlead_gateway.indexing.source import Source

_SWEEP_SECONDS: Final = 1.0


class Worker(Protocol):
    """One worker's end of the channel."""

    def send(self, message: msgspec.Struct) -> bool:
        """False when it was dropped."""
        ...

    def send_encoded(self, message: bytes) -> bool:
        """The same, encoded once for several."""
        ...


MakeSource: TypeAlias = "Callable[[Callable[[str, Sequence[Change]], None], Callable[[str], None]], Source]"
"""From what hears of changes of a model, and what hears that its mirror is another now, to a source."""


class Keeper(Protocol):
    """As ``links.kept.KeptLinks``."""

    @property
    def taken(self) -> Mapping[str, int]:
        """Prompts of each model that were learned elsewhere."""
        ...

    @property
    def unreadable(self) -> int:
        """Entries that nobody could have written so."""
        ...

    def start(self) -> None:
        """Begin on the running loop."""
        ...

    def follow(self, models: Iterable[str]) -> None:
        """Keep the links of these models."""
        ...

    def offer(self, model: str, lesson: Lesson) -> None:
        """A prompt was learned here."""
        ...

    def forget(self, model: str) -> None:
        """What was learned is wrong."""
        ...

    async def stop(self) -> None:
        """Write what waits and end."""
        ...


MakeKeeper: TypeAlias = Callable[[Callable[[str, Lesson], None]], Keeper]
"""From what takes lessons of others to what keeps ours."""


class IndexSide:
    """``workers`` are those that serve; ``source`` is made when an engine of the fleet first tells what it holds. ``tokenize`` is for
    links by ``process``, with tokenizers in the folder ``tokenizers``; ``keep`` makes what keeps links for whoever starts later."""

    def __init__(
        self,
        *,
        workers: Callable[[], Sequence[Worker]],
        source: MakeSource,
        links: Links,
        secret: bytes,
        clock: Clock,
        limits: Limits,
        reach: Reach | None,
        tokenize: Tokenize | None = None,
        tokenizers: str = "",
        keep: MakeKeeper | None = None,
    ) -> None:
        self._workers = workers
        self._make_source = source
        self._how = links
        self._secret = secret
        self._clock = clock
        self._limits = limits
        self._reach = reach or Reach({}, clock.now)
        self._tokenize = tokenize
        self._tokenizers = tokenizers
        self._make_keeper = keep
        self._keeper: Keeper | None = None
        self._source: Source | None = None
        self._fleet = Fleet()
        self._instances: dict[str, Instance] = {}
        self._models: dict[str, ModelIndex] = {}
        self._asking: dict[str, Asking] = {}
        self._busy: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._anew = False
        self.dropped = 0
        self.hot: Callable[[str], Sequence[HotShare]] = lambda _: ()
        """The hot prefixes of a model; none are known where no gateways count them together."""

    # --- life -----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="tell workers of the index")
        self.apply(self._fleet)

    async def stop(self) -> None:
        """Read and tell no more."""
        task, self._task = self._task, None
        await ended(task)
        for asking in self._asking.values():
            asking.close()
        if self._keeper is not None:
            await self._keeper.stop()
            self._keeper = None
        if self._source is not None:
            await self._source.close()
            self._source = None

    def apply(self, fleet: Fleet) -> None:
        """What there is now."""
        self._fleet = fleet
        self._instances = {one.id: one for ones in fleet.instances.values() for one in ones}
        telling = any(one.kv_events is not None for one in self._instances.values())
        if self._source is None and telling and self._task is not None and self._how is not Links.OFF:
            self._source = self._make_source(self._changed, self._reloaded)
            if self._make_keeper is not None:
                self._keeper = self._make_keeper(self._taken)
                self._keeper.start()
        if self._source is not None:
            self._source.fleet(fleet)
        if self._keeper is not None:
            self._keeper.follow(key for key, ones in fleet.instances.items() if any(one.kv_events for one in ones))
        for gone in self._models.keys() - fleet.models.keys():
            del self._models[gone]
            asking = self._asking.pop(gone, None)
            if asking is not None:
                asking.close()
        for key, model in self._models.items():
            model.keep_only([one.id for one in fleet.instances.get(key, ())])

    # --- what comes in --------------------------------------------------------------------------------------------------

    def heard(self, worker: Worker, message: Seen | Given) -> None:
        """A worker tells what it sent and how that ended, or what it was asked for."""
        if self._source is None:
            return
        if isinstance(message, Given):
            asking = self._asking.get(message.model)
            if asking is not None:
                for sample in message.samples:
                    asking.given(sample, self._instances)
            return
        self.dropped += message.dropped
        wanted: dict[str, list[int]] = {}
        now = self._clock.now()
        for row in message.sent:
            model = self._model(row.model)
            if model is None:
                continue
            hashes = array("Q", row.hashes)
            if model.sent(row.instance, row.tail, hashes, block_ends(len(hashes)), row.size, now):
                asking = self._asking.get(row.model)
                if asking is not None and asking.wants(row):
                    wanted.setdefault(row.model, []).append(row.tail)
            self._busy.add(row.model)
        for end in message.ended:
            model = self._models.get(end.model)
            if model is not None:
                model.ended(
                    end.instance,
                    end.tail,
                    now,
                    prompt_tokens=end.prompt_tokens,
                    cached_tokens=end.cached_tokens,
                    indexed=end.indexed,
                    matched=end.matched,
                )
                self._busy.add(end.model)
        for key, tails in wanted.items():
            worker.send(Want(key, tails))
        self._wake.set()

    def sent_elsewhere(self, model_key: str, instance: str, tail: int, hashes: Sequence[int]) -> None:
        """Another gateway sent a prompt there."""
        model = self._model(model_key)
        if model is not None:
            model.bridge.sent(instance, tail, hashes, self._clock.now(), ends_told=False)

    def joined(self) -> None:
        """A worker knows nothing yet."""
        self._anew = True
        self._wake.set()

    # --- for people -----------------------------------------------------------------------------------------------------

    def look(self) -> dict[str, ModelLook]:
        """How far each model is followed; empty where no engine tells what it holds."""
        if self._source is None:
            return {}
        found = {}
        for key in self._fleet.models:
            model = self._model(key)
            if model is not None and any(one.kv_events is not None for one in self._fleet.instances.get(key, ())):
                stale, table = self._source.stale(key), model.bridge.table
                model.count(self._clock.now(), stale)
                instances = {one.id: model.look(one.id, stale) for one in self._fleet.instances[key]}
                how, wanted = self._learned_how(key), tuple(self.hints(key))
                found[key] = ModelLook(instances, len(table), table.lowered, table.learned, how, wanted)
        return found

    def hints(self, key: str) -> list[Hint]:
        """Which of the model's hot prefixes want another home. Prefixes that are not linked are not judged."""
        model = self._models.get(key)
        ready = [
            one.id
            for one in self._fleet.instances.get(key, ())
            if one.state is InstanceState.READY and one.role is not Role.PREFILL
        ]
        return [] if model is None else model.hints(self.hot(key), ready)

    def notes(self) -> list[str]:
        """What is missing or degraded, in words."""
        if self._source is None:
            return []
        found = self._source.notes()
        if self._keeper is not None and self._keeper.unreadable:
            found.append(
                f"{self._keeper.unreadable} entries of links in Redis were passed over: damaged, or another secret's"
            )
        for key, model in self._models.items():
            out = [one for one in model.quarantined() if one in self._instances]
            if out:
                found.append(
                    f"{key}: the index of {len(out)} instances is in quarantine: {out[0]}: {model.why(out[0])}"
                )
        return found

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _model(self, key: str) -> ModelIndex | None:
        model = self._models.get(key)
        if model is None and self._source is not None and key in self._fleet.models:
            mirror = self._source.mirror(key)
            model = self._models[key] = ModelIndex(
                key, mirror, secret=self._secret, limits=self._limits, on_relearn=partial(self._relearned, key)
            )
            learn = partial(self._learn, key)
            here = None
            if self._how is Links.PROCESS and self._tokenize is not None:
                here = Here(self._tokenize, self._tokenizers, key, self._clock, self._limits)
            self._asking[key] = Asking(self._post, learn, self._clock, self._limits, here)
        return model

    def _learned_how(self, key: str) -> str:
        asking, keeper = self._asking.get(key), self._keeper
        words = "off" if asking is None else asking.how
        taken = 0 if keeper is None else keeper.taken.get(key, 0)
        return f"{words}; {taken} prompts were learned by other gateways or before" if taken else words

    def _relearned(self, key: str) -> None:
        if self._keeper is not None:
            self._keeper.forget(key)

    def _taken(self, key: str, lesson: Lesson) -> None:
        """Learned by another gateway, or before this one started."""
        model = self._model(key)
        if model is not None:
            model.bridge.link(lesson)
            self._busy.add(key)
            self._wake.set()

    def _changed(self, model_key: str, changes: Sequence[Change]) -> None:
        model = self._model(model_key)
        if model is not None:
            model.changed(changes)
            self._busy.add(model_key)
            self._wake.set()

    def _reloaded(self, model_key: str) -> None:
        model = self._model(model_key)
        if model is not None and self._source is not None:
            model.bridge.reloaded(self._source.mirror(model_key))
            self._busy.add(model_key)
            self._wake.set()

    def _learn(
        self, key: str, row: SentRow, tokens: Sequence[int], asked: Asked, adapter: str | None, *, doubted: bool
    ) -> int | None:
        model = self._models.get(key)
        if model is None:
            return 0
        hashes = array("Q", row.hashes)
        ends = block_ends(len(hashes))
        exact = reaches(asked.text, ends) if asked.text else None
        done = model.bridge.learn(
            hashes,
            ends,
            tokens,
            size=row.size,
            salt=asked.salt,
            adapter=adapter,
            reaches=exact,
            doubted=doubted,
        )
        if done and self._keeper is not None and model.bridge.block_size is not None:
            lesson = model.bridge.table.lesson(hashes, model.bridge.block_size)
            if lesson is not None:
                self._keeper.offer(key, lesson)
        self._busy.add(key)
        self._wake.set()
        return done

    async def _post(self, instance: Instance, question: bytes | None) -> bytes:
        return await get(
            instance.url.rstrip("/") + (MODELS_PATH if question is None else PATH),
            deadline_seconds=self._limits.link_answer_seconds,
            most_bytes=self._limits.link_answer_bytes,
            trust=partial(self._reach.context, instance.access),
            more=self._reach.authorization(instance.access),
            question=question,
        )

    async def _run(self) -> None:
        """Gather, tell, and now and then look at every model: what was on its way ends without a word."""
        while True:
            try:
                async with asyncio.timeout(_SWEEP_SECONDS):
                    await self._wake.wait()
                await asyncio.sleep(self._limits.link_correction_seconds)
            except TimeoutError:
                self._busy.update(self._models)
            self._wake.clear()
            if self._anew:
                self._anew = False
                for key, model in self._models.items():
                    model.bridge.tell_all()
                    self._busy.add(key)
            busy, self._busy = self._busy, set()
            for key in busy:
                self._tell(key)
                await asyncio.sleep(0)

    def _tell(self, key: str) -> None:
        model = self._models.get(key)
        if model is None:
            return
        found = model.corrections(self._clock.now())
        if not found:
            return
        self._busy.add(key)  # there may be more
        self._wake.set()
        message = encoded(Corrected(key, found))
        for worker in self._workers():
            if not worker.send_encoded(message):
                asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self.joined)
