"""The leg before forward: where a model's engines are split, another engine computes the prompt first.

Who computes a prompt is decided anew for each (``routing.convertible``), between the engine that would answer it and the best
of those that prefill. The prefill engine is asked for one token within its own time limit, and that token is dropped; then the
engine that decodes is chosen, as late as possible, and told where the result lies. The hand-off is bound to one attempt and to the
time that the prefill engine keeps the blocks. When anything of it fails, the request goes on as a plain one: another prefill engine
is tried once, and a decode that failed or said nothing in time is asked again without the hand-off, since it was not its fault.
Prefill engines and pairs that failed are left alone for a while. One that broke off on a prompt counts against that prompt as any
engine does: when two have, one after the other, no third one gets it.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from fairlead.clock import Clock
from fairlead.decision import Decision
from fairlead.fleet import Instance
from fairlead.limits import Limits
from fairlead_gateway import handoff_plan as plan
from fairlead_gateway.answer import Answer
from fairlead_gateway.errors import NoInstance, Quarantined
from fairlead_gateway.fields import Generation
from fairlead_gateway.handoff_plan import Handoff
from fairlead_gateway.handoff_story import BYPASSED, DONE, FAILED, HandoffStory, PrefillLeg
from fairlead_gateway.handoff_way import Ways
from fairlead_gateway.job import Job
from fairlead_gateway.leg import LegFailed, leg
from fairlead_gateway.model import Ask
from fairlead_gateway.quarantine import Quarantine
from fairlead_gateway.retry import Failure
from fairlead_gateway.route import Routes
from fairlead_gateway.routing.convertible import STAYS, where
from fairlead_gateway.routing.request import RouteRequest
from fairlead_gateway.served_name import body_for
from fairlead_gateway.splice import added, splice
from fairlead_gateway.steps import PREFILL
from fairlead_gateway.telemetry import OK, Telemetry
from fairlead_gateway.upstream import Broken, Pool
from fairlead_gateway.wire import engine_request

_PREFILLS = 2
_HELD = "quarantined"
_ROOMS = 1 << 63
_NOBODY: Final[frozenset[str]] = frozenset()
_EXPIRED = ("expired", "the blocks are not kept any longer")


class Prefill:
    """``decoding`` and ``prefilling`` are the routers of the two groups; ``draw`` gives numbers from 0 to 1."""

    def __init__(
        self,
        *,
        decoding: Routes,
        prefilling: Routes,
        pool: Pool,
        telemetry: Telemetry,
        clock: Clock,
        limits: Limits,
        quarantine: Quarantine,
        draw: Callable[[], float],
    ) -> None:
        self._decoding = decoding
        self._prefilling = prefilling
        self._pool = pool
        self._telemetry = telemetry
        self._clock = clock
        self._limits = limits
        self._quarantine = quarantine
        self._draw = draw
        self._suspects: dict[tuple[str, str | None], float] = {}
        self._engines: dict[str, str] = {}
        self._rooms: set[asyncio.Task[None]] = set()
        self._ways = Ways(limits)

    def close(self) -> None:
        """Cut the prefills whose answers nobody waits for."""
        for task in self._rooms:
            task.cancel()

    def keep_only(self, models: Collection[str]) -> None:
        """The others have left."""
        self._ways.keep(models)

    def applies(self, key: str) -> bool:
        """Whether the model has engines that only prefill."""
        return self._prefilling.has(key)

    def choice(self, job: Job, excluded: frozenset[str], now: float) -> Decision:
        """Which engine answers. Raises NoInstance when none is ready."""
        if job.judged is not None:
            judged, job.judged = job.judged, None
            return judged
        unusable = excluded if job.handoff is None else excluded | self.unfit(job, excluded)
        # A prompt is seen once: where it was decided who computes it, an engine to answer it was chosen before.
        asking = job.story is not None and job.story.where is not None
        avoid = job.avoid if not job.failures else _NOBODY
        decision = self._decoding.choose(job.ask.key, job.route, now, unusable | avoid, asking=asking)
        if avoid and decision.chosen is None:
            decision = self._decoding.choose(job.ask.key, job.route, now, unusable, asking=asking)
        return decision

    async def before(self, job: Job) -> None:
        """Have the prompt prefilled elsewhere, if that is worth it and works; ``job`` says afterwards what happened. Raises
        NoInstance when no engine could answer, Quarantined when engines died of it."""
        key = job.ask.key
        if not self.applies(key):
            return
        if self._decoding.router(key) is None:
            return
        story = job.story = HandoffStory()
        against = plan.why_not(job.ask.parsed, job.ask.body)
        if against is not None:
            self._ended(job, BYPASSED, against[0], f"no hand-off: {against[1]}")
            return
        began = self._clock.now()
        judged = self.choice(job, _NOBODY, began)
        if judged.chosen is None:
            return
        decided = story.where = self.where(job.ask, job.route, judged.chosen, began)
        if decided.rule in STAYS:
            job.judged = judged
            self._ended(job, BYPASSED, decided.rule, f"no hand-off: {decided.reason}")
            return
        word, why = await self._prefilled(job, story)
        story.waited_seconds = self._clock.now() - began
        if job.handoff is None:
            self._ended(job, FAILED, word, f"no hand-off: {why}")
            if word == _HELD:
                raise Quarantined(self._limits.quarantine_seconds)
        else:
            story.words = job.handoff.words

    def where(self, ask: Ask, route: RouteRequest, chosen: str, now: float) -> Decision:
        """Who computes the prompt, if ``chosen``, which is ready, is to answer it. Nothing is remembered of it."""
        key, there = ask.key, None
        serving, prefilling = self._decoding.router(key), self._prefilling.router(key)
        here = None if serving is None else serving.side(route, chosen, now)
        assert here is not None
        try:
            best = self._prefilling.choose(key, route, now, self._useless(key), asking=True).chosen
        except NoInstance:
            best = None
        if prefilling is not None and best is not None:
            there = prefilling.side(route, best, now)
        objectives = ask.model.objectives
        return where(
            here,
            there,
            itl_seconds=objectives.itl_seconds,
            ttft_seconds=objectives.ttft_limit(here.prompt_tokens),
            way_seconds=self._ways.seconds(key, here.prompt_tokens),
            least_tokens=self._limits.handoff_least_tokens,
        )

    async def _prefilled(self, job: Job, story: HandoffStory) -> tuple[str, str]:
        """Fill ``job.handoff``, or say in one word and in several why not."""
        key = job.ask.key
        excluded = self._useless(key)
        word, why = "no-prefill-instance", "no prefill instance is ready and trusted"
        for _ in range(_PREFILLS):
            try:
                decision = self._prefilling.choose(key, job.route, self._clock.now(), excluded)
            except NoInstance:
                break
            instance = self._prefilling.ready(key, decision.chosen) if decision.chosen is not None else None
            if instance is None:
                break
            excluded |= {instance.id}
            made = PrefillLeg(instance.id, decision, self._clock.now())
            story.legs.append(made)
            try:
                job.handoff = await self._on(job, instance, made)
                break
            except LegFailed as failure:
                word, why = f"prefill-{failure.word}", f"{instance.id} did not prefill: {failure.why}"
                if self._failed(job, made, failure):
                    return _HELD, f"{why}, not the first one that broke off on it"
                if failure.final:
                    break
        return word, why

    def unfit(self, job: Job, excluded: frozenset[str]) -> frozenset[str]:
        """The instances that cannot take this hand-off; where none could, the hand-off is given up instead."""
        handoff = job.handoff
        if handoff is None:
            return frozenset()
        now = self._clock.now()
        ready = self._decoding.ready_ids(job.ask.key)
        unfit = frozenset(one for one, found in ready.items() if not self._pair(handoff.prefill, found, now))
        if now < handoff.until and not ready.keys() <= unfit | excluded:
            return unfit
        if now < handoff.until:
            self._give_up(job, "no-decode-instance", "no instance can take it")
        else:
            self._give_up(job, *_EXPIRED)
        return frozenset()

    def told(self, job: Job, decision: Decision) -> Decision:
        """The decision with both legs in its reason."""
        if job.story is None:
            return decision
        return decision.told(reason=f"{job.story.words}; {decision.reason}")

    def body(self, job: Job) -> bytes:
        """The body of this attempt."""
        handoff = job.handoff
        if handoff is None:
            return job.ask.body
        if self._clock.now() >= handoff.until:
            self._give_up(job, *_EXPIRED)
            return job.ask.body
        return splice(job.ask.body, handoff.fields)

    def with_source(self, job: Job, body: bytes, source: str) -> bytes:
        """The body that also says whose cache a part of the prompt is in; as it is where that instance has left, or nothing is
        generated. A peer that does not have it any more costs nothing: the engine then computes it."""
        found = self._decoding.ready(job.ask.key, source)
        if found is None or found.pull is None or job.handoff is not None or not isinstance(job.ask.parsed, Generation):
            return body
        return added(body, plan.source_fields(found.pull.address, f"{job.id}-{int(self._draw() * _ROOMS):x}"))

    @contextmanager
    def deadline(self, job: Job, instance: Instance, answer: Answer) -> Iterator[None]:
        """While the first event of a hand-off is awaited: seconds, and not for ever."""
        handoff = job.handoff
        if handoff is None:
            yield
            return
        handoff.decode = instance.id
        job.handed_over = True
        if handoff.prefill.transfer == "sglang":
            self._send_too(job, handoff)
        seconds = plan.patience_seconds(job.ask.stream, job.ask.max_tokens, self._limits)
        timer = self._pool.loop.call_later(seconds, _expire, answer)
        try:
            yield
        finally:
            timer.cancel()

    def accepted(self, job: Job) -> None:
        """The decode engine answers: the hand-off has served its one attempt."""
        if job.handoff is not None:
            assert job.story is not None
            assert job.story.where is not None
            self._travelled(job, job.handoff, job.story.where)
            self._ended(job, DONE, job.story.where.rule, job.story.words)
            job.handoff = None

    def _travelled(self, job: Job, handoff: Handoff, decided: Decision) -> None:
        """Learn what KV takes: of streams only, and where the prefill was over before."""
        sent, step = job.dispatched_at, decided.inputs.get("step_seconds")
        if not job.ask.stream or sent is None or handoff.prefill.transfer == "sglang":
            return
        seconds = self._clock.now() - sent - (2.0 * step.value if step is not None and step.value is not None else 0.0)
        self._ways.took(job.ask.key, self._decoding.prompt_tokens(job.ask.key, job.route), seconds)

    def forgives(self, job: Job, failure: Failure) -> bool:
        """Whether an attempt failed over the hand-off: then the same request goes again without it, there or elsewhere."""
        handoff = job.handoff
        if handoff is None or handoff.decode is None:
            return False
        job.handoff, job.handed_over = None, False
        self._distrust(handoff.prefill.id, handoff.decode)
        words = f"the hand-off from {handoff.prefill.id} failed on {handoff.decode} ({failure.why}), plain now"
        self._ended(job, FAILED, f"decode-{failure.why}", words)
        return not failure.died and failure.sent and not failure.overloaded

    # One prefill ---------------------------------------------------------------------------------------------------------

    async def _on(self, job: Job, instance: Instance, made: PrefillLeg) -> Handoff:
        """Prefill on one instance. Raises LegFailed."""
        words = f"prefill on {instance.id} ({made.decision.rule}: {made.decision.reason})"
        if instance.transfer == "sglang":
            room = int(self._draw() * _ROOMS)
            fields = plan.sglang_fields(plan.bootstrap_of(instance), room)
            return Handoff(instance, fields, self._clock.now() + self._limits.handoff_lease_seconds, f"{words} at once")
        if instance.transfer == "mooncake":
            transfer_id = f"xfer-{job.id}-{int(self._draw() * _ROOMS):x}"
            engine_id = await self._engine_id(instance)
            asked = plan.mooncake_prefill(transfer_id)
            made.began = self._clock.now()
            await self._leg(job, instance, asked)
            found: Mapping[str, bytes] | None = plan.mooncake_decode(
                transfer_id, engine_id, plan.bootstrap_of(instance)
            )
        else:
            found = plan.nixl_decode(await self._leg(job, instance, plan.nixl_prefill()))
        if found is None:
            raise LegFailed("its answer does not say where the blocks are", word="no-blocks", suspicious=False)
        now = self._clock.now()
        self._leg_ended(job, made, OK)
        words += f" in {(now - made.began) * 1e3:.0f} ms"
        return Handoff(instance, found, now + self._limits.handoff_lease_seconds, words)

    async def _leg(self, job: Job, instance: Instance, fields: Mapping[str, bytes]) -> bytes:
        """Ask for the prefill and wait for its end: the answer's body. The router knows of it meanwhile."""
        body = plan.prefill_body(job.ask.parsed, job.ask.body, fields)
        if instance.served_name is not None:
            body = body_for(instance.served_name, body)
        head = job.request.head
        more = job.trace.asked(instance, PREFILL, "") if job.trace is not None else ""
        message = engine_request(instance.url, head.path, head, body, job.request.id, rank=instance.dp_rank, more=more)
        router = self._prefilling.router(job.ask.key)
        if router is None:
            raise LegFailed("the model has left", word="model-left", suspicious=False)
        router.dispatched(job.route, instance.id, self._clock.now())
        done = False
        try:
            found = await leg(self._pool, instance.url, message, self._limits.handoff_prefill_seconds, self._limits)
            done = True
            return found
        finally:
            (router.finished if done else router.abandoned)(job.route.id, self._clock.now())

    def _failed(self, job: Job, made: PrefillLeg, failure: LegFailed) -> bool:
        """Take down that an engine did not prefill; whether no engine should get the prompt any more."""
        self._leg_ended(job, made, failure.word)
        if failure.suspicious:
            self._distrust(made.instance_id, None)
        made.died = failure.died
        if not made.died:
            return False
        print_ = job.known_by(self._quarantine.fingerprint)
        return self._quarantine.died(print_, made.instance_id, made.began, self._clock.now())

    def _send_too(self, job: Job, handoff: Handoff) -> None:
        """SGLang's prefill runs beside the decode; ending it early would abort the room, so it runs to its end."""

        assert job.story is not None
        made = job.story.legs[-1]
        made.began = self._clock.now()

        async def prefill() -> None:
            try:
                await self._leg(job, handoff.prefill, handoff.fields)
                self._leg_ended(job, made, OK)
            except LegFailed as failure:
                self._failed(job, made, failure)

        task = self._pool.loop.create_task(prefill())
        self._rooms.add(task)
        task.add_done_callback(self._rooms.discard)

    async def _engine_id(self, instance: Instance) -> str:
        """Mooncake's name for an engine, asked once for each start of it. Raises LegFailed."""
        known = self._engines.get(instance.id)
        if known is not None:
            return known
        address = plan.bootstrap_of(instance)
        message = [f"GET /query HTTP/1.1\r\nhost: {address.partition('://')[2]}\r\n\r\n".encode("latin-1")]
        try:
            answer = await leg(self._pool, address, message, self._limits.handoff_query_seconds, self._limits)
        except LegFailed as failure:
            failure.died = False  # it has not met the prompt
            raise
        engine_id = plan.mooncake_engine(answer, instance.dp_rank or 0)
        if engine_id is None:
            raise LegFailed("its bootstrap server names no engine", word="no-engine-name", suspicious=True)
        self._engines[instance.id] = engine_id
        return engine_id

    # Trust ---------------------------------------------------------------------------------------------------------------

    def _useless(self, key: str) -> frozenset[str]:
        """Prefill instances that are suspect, or whose work no ready instance could take."""
        now = self._clock.now()
        decodes = self._decoding.ready_ids(key).values()
        return frozenset(
            one
            for one, found in self._prefilling.ready_ids(key).items()
            if self._suspect(one, None, now) or not any(self._pair(found, decode, now) for decode in decodes)
        )

    def _distrust(self, prefill: str, decode: str | None) -> None:
        """Leave an instance or a pair alone for a while; what an engine is called is asked anew, it may have been restarted."""
        now = self._clock.now()
        self._suspects = {pair: until for pair, until in self._suspects.items() if until > now}
        self._suspects[prefill, decode] = now + self._limits.handoff_suspect_seconds
        self._engines.pop(prefill, None)

    def _pair(self, prefill: Instance, decode: Instance, now: float) -> bool:
        """Whether one can hand over to the other."""
        return decode.transfer == prefill.transfer and not self._suspect(prefill.id, decode.id, now)

    def _suspect(self, prefill: str, decode: str | None, now: float) -> bool:
        return self._suspects.get((prefill, decode), now) > now

    # What became of it ---------------------------------------------------------------------------------------------------

    def _give_up(self, job: Job, word: str, why: str) -> None:
        self._ended(job, FAILED, word, f"no hand-off after all: {why}")
        job.handoff = None

    def _ended(self, job: Job, outcome: str, reason: str, words: str) -> None:
        assert job.story is not None
        job.story.outcome, job.story.reason, job.story.words = outcome, reason, words
        kept = None
        if outcome != DONE and job.story.kept:
            kept = self._decoding.prompt_tokens(job.ask.key, job.route)
        self._telemetry.handoff(job.ask.key, outcome, reason, kept)

    def _leg_ended(self, job: Job, made: PrefillLeg, result: str) -> None:
        made.seconds, made.result = self._clock.now() - made.began, result
        self._telemetry.prefilled(job.ask.key, made.instance_id, made.seconds, result)
        if job.trace is not None:
            job.trace.ended(PREFILL, None if result == OK else result)


def _expire(answer: Answer) -> None:
    answer.broken(Broken("timeout"))
