"""Room 5, forward: to an engine and back.

An attempt ends with an answer that can be passed on, or with a Failure; failures before the first byte go to another engine
as far as ``retry`` allows. A client that leaves cancels the task, and with it the attempt: the engine's connection is closed
at once. After the first byte there is no second try: a stream that breaks ends with an error event and without ``[DONE]``.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from fairlead.clock import Clock
from fairlead.decision import Decision
from fairlead.fleet import Instance
from fairlead.limits import Limits
from fairlead_gateway.answer import Answer
from fairlead_gateway.continuation import Said, continuable
from fairlead_gateway.decision_log import DecisionLog, DecisionRecord
from fairlead_gateway.errors import GatewayError, Quarantined, error_body, error_event
from fairlead_gateway.health import Health
from fairlead_gateway.holding import Holding
from fairlead_gateway.job import Job
from fairlead_gateway.judge import is_error_object, judge, not_served
from fairlead_gateway.keepalive import KeepAlive
from fairlead_gateway.lateness import FIELD, allowed, remaining, too_late
from fairlead_gateway.learning.rows import RowTeller
from fairlead_gateway.prefill import Prefill
from fairlead_gateway.quarantine import Quarantine
from fairlead_gateway.resume import Resume
from fairlead_gateway.retry import Failure, RetryBudget, as_error, worth_retrying
from fairlead_gateway.route import Routes, as_retry
from fairlead_gateway.routing import ModelRouter
from fairlead_gateway.samples import Samples
from fairlead_gateway.served_name import Renaming, body_for, target_for
from fairlead_gateway.steps import ATTEMPT
from fairlead_gateway.telemetry import Telemetry
from fairlead_gateway.upstream import Broken, Pool, Upstream
from fairlead_gateway.wire import JSON, Named, Starts, framed, named, passed_back, timing

_WORDS = {
    "cut": "the engine broke off",
    "timeout": "the engine fell silent",
    "gone": "the engine fell silent and takes no connections",
    "error-event": "the engine reported an error",
    "aborted": "the engine aborted the request",
    "garbage": "the engine's answer cannot be read",
}


_JSON_OR_EVENTS: Final = re.compile(rb"json|text/event-stream", re.IGNORECASE)


@dataclass(slots=True)
class Begun:
    """An attempt that ``short`` began and that has met its verdict, or found no idle connection (then without ``connection``)."""

    instance: Instance
    connection: Upstream | None = None
    answer: Answer | None = None
    message: list[bytes] | None = None
    broken: Broken | None = None


class _Moved(Exception):
    """Raised when the instance stopped being ready between the choice and the first byte to it."""


class Forward:
    """Carries jobs to engines. One object serves all requests of a gateway."""

    def __init__(
        self,
        *,
        routes: Routes,
        pool: Pool,
        telemetry: Telemetry,
        decisions: DecisionLog,
        clock: Clock,
        limits: Limits,
        health: Health,
        quarantine: Quarantine,
        prefill: Prefill,
        budget: RetryBudget,
        samples: Samples | None = None,
        rows: RowTeller | None = None,
        holding: Holding,
    ) -> None:
        self._routes = routes
        self._holding = holding
        self._rows = rows
        self._samples = samples
        self._prefill = prefill
        self._health = health
        self._quarantine = quarantine
        self._pool = pool
        self._telemetry = telemetry
        self._decisions = decisions
        self._clock = clock
        self._now = clock.now  # called more often than anything: without a look at the clock each time
        self._limits = limits
        self._starts = Starts()
        self._named = Named()
        self.budget = budget
        self._resume = Resume(
            routes=routes,
            pool=pool,
            telemetry=telemetry,
            chosen=self._chosen,
            clock=clock,
            limits=limits,
            health=health,
            budget=self.budget,
            follow=_follow_pace,
            died=self._died,
        )

    async def carry(self, job: Job, begun: Begun | None = None) -> None:
        """Get an answer for ``job`` and pass it on, in the time that it may take. Raises GatewayError when none comes."""
        seconds = allowed(job.request.head, job.ask.stream, self._limits)
        if seconds is None:
            await self._carry(job, begun)
            return
        job.until = job.request.received + seconds
        try:
            async with asyncio.timeout(job.until - self._now()):
                await self._carry(job, begun)
        except TimeoutError:
            self._late(job, too_late(job.request.head, seconds))

    def _late(self, job: Job, error: GatewayError) -> None:
        """The time is over: raise the error, or say it in the stream that has begun."""
        self._health.late(job)
        if not job.reply.begun:
            raise error
        job.error = error.code
        if job.ask.stream:
            job.reply.broken(error_event(f"{error}; the answer is incomplete", error.code, job.request.id))
        else:
            job.reply.cut()

    async def _carry(self, job: Job, begun: Begun | None) -> None:
        excluded: frozenset[str] = frozenset()
        if begun is None:
            left = self._quarantine.seconds_left(job.ask.body, self._now())
            if left is not None:
                raise Quarantined(left)
            self.budget.request(self._now())
            await self._holding.turn(job)
            await self._prefill.before(job)
        while True:
            first, begun = begun, None
            instance = first.instance if first is not None else self.choose(job, excluded, self._now())
            asked = first if first is not None and first.answer is not None else None
            try:
                if asked is not None or await self._holding.berth(job):
                    await self._attempt(job, instance, asked)
                    return
            except _Moved:
                if job.trace is not None:
                    job.trace.ended(ATTEMPT, "moved")
                continue
            except Failure as failure:
                failure.where = instance.id
                if job.trace is not None:
                    job.trace.ended(ATTEMPT, failure.why)
                if self._prefill.forgives(job, failure):
                    continue
                job.failures.append(failure)
                self._health.failed(job, failure)
                held = failure.died and self._died(job, instance.id, job.dispatched_at)
                excluded |= {instance.id}
                if not worth_retrying(job.failures, self._limits):
                    raise self._given_up(job) from None
                if held:  # others like it have been the end of another engine
                    raise Quarantined(self._limits.quarantine_seconds) from None

    def choose(self, job: Job, excluded: frozenset[str], now: float) -> Instance:
        """Ask for a decision, log it, and make it the job's."""
        decision = self._prefill.choice(job, excluded, now)
        if job.release is not None and not job.failures:
            decision = decision.told(reason=f"{job.release.words()}; then {decision.rule}: {decision.reason}")
        if job.story is not None:
            decision = self._prefill.told(job, decision)
        chosen = decision.chosen
        if chosen is None:
            raise self._given_up(job)
        if job.failures:
            if not job.failures[-1].free and not self.budget.take(now):
                raise self._given_up(job)
            assert job.instance is not None
            self._telemetry.retried(job.ask.key, job.instance.id, job.failures[-1].why)
            decision = as_retry(decision, len(job.failures), job.failures[-1].why)
        instance = self._routes.ready(job.ask.key, chosen)
        if instance is None:
            raise self._routes.none_ready(job.ask.key, now)
        self._chosen(job, instance, decision, len(job.failures) + 1)
        return instance

    def _chosen(self, job: Job, instance: Instance, decision: Decision, attempt: int) -> None:
        """A choice is the job's from now on: counted and logged."""
        job.attempt, job.instance, job.decision, job.instance_id = attempt, instance, decision, instance.id
        self._telemetry.routed(job.ask.key, job.instance_id, decision)
        self._decisions.append(
            DecisionRecord(
                job.id,
                job.request.wall,
                job.ask.key,
                decision,
                job.attempt,
                _rounded(self._routes.prompt_tokens(job.ask.key, job.route)),
                job.request.caller,
                job.story,
            )
        )

    def _given_up(self, job: Job) -> GatewayError:
        """What the client is told now that no engine answered."""
        self._health.gave_up(job)
        return as_error(job.failures, self._routes.drain_seconds(job.ask.key))

    async def _attempt(self, job: Job, instance: Instance, begun: Begun | None) -> None:
        """One engine: send, wait for the verdict, pass on. The ledger knows of it from here to the end."""
        router = job.router if begun is not None else self.dispatched(job, self._now())
        assert router is not None
        finished = False
        try:
            finished = await self._exchange(job, instance, begun)
        finally:
            self.ended(job, router, finished, self._now())

    def dispatched(self, job: Job, now: float) -> ModelRouter:
        """Ledger and breaker learn of an attempt."""
        router = job.router = self._routes.router(job.ask.key)
        assert router is not None
        if job.assigned != job.instance_id:
            router.dispatched(job.route, job.instance_id, now, elsewhere=job.handoff is not None)
        self._holding.sent(job, now)
        if self._samples is not None and router.followed:
            self._samples.offer(job.ask, job.route)
        if self._rows is not None and job.handoff is None:
            decision = job.decision
            matched = decision.matched_tokens if decision is not None and decision.source is None else None
            tokens = router.prompt_tokens(job.route)
            self._rows.sent(job.route.id, job.instance_id, now, tokens, 0.0 if matched is None else matched)
        self._health.breaker.sent(job.instance_id)
        return router

    def ended(self, job: Job, router: ModelRouter, finished: bool, now: float) -> None:
        """Ledger and breaker learn of an attempt's end."""
        if finished and len(self._quarantine) and job.status < 400:
            self._acquit(job, now)
        if finished:
            router.finished(
                job.route.id,
                now,
                prompt_tokens=job.prompt_tokens,
                cached_tokens=None if job.handed_over else job.cached_tokens,  # says nothing then
                output_tokens=job.output_tokens,
            )
            if self._rows is not None and job.handoff is None:
                self._rows.done(job.route.id, now, job.cached_tokens, job.output_tokens)
        else:
            router.abandoned(job.route.id, now)
            if self._rows is not None and job.handoff is None:
                self._rows.gone(job.route.id, now)
        self._health.breaker.unknown(job.instance_id)
        self._holding.ended(job, finished, now)

    def message(self, job: Job, instance: Instance) -> list[bytes]:
        """The request as this attempt's engine gets it."""
        head, body = job.request.head, job.ask.body if job.handoff is None else self._prefill.body(job)
        if job.decision is not None and job.decision.source is not None:
            body = self._prefill.with_source(job, body, job.decision.source)
        more = remaining(head, job.until, self._now()) if head.get(FIELD) is not None and job.until is not None else ""
        if job.trace is not None:
            more += job.trace.asked(instance, ATTEMPT, job.decision.rule if job.decision is not None else "")
        target = job.ask.target
        if instance.served_name is not None:
            body = body_for(instance.served_name, body)
            target = None if target is None else target_for(instance.served_name, target)
        start = self._starts.of(job.ask.method, head.path if target is None else target, instance.url)
        return framed(start, head, body, job.request.id, rank=instance.dp_rank, more=more)

    def ask(
        self,
        job: Job,
        connection: Upstream,
        message: list[bytes],
        decided: Callable[[Broken | None], None] | None = None,
    ) -> Answer:
        """Send a request; the answer's verdict is awaited, or told to ``decided``."""
        patience = job.patience = self._health.patience(job, connection.peer)
        answer = Answer(
            stream=job.ask.stream,
            strip=job.ask.strip_usage,
            clock=self._clock,
            limits=self._limits,
            loop=self._pool.loop,
            silent=patience.more,
            decided=decided,
        )
        answer.opaque = job.ask.opaque
        now = self._now()
        job.dispatched_at = now
        connection.ask(message, answer, patience.begin(now))
        return answer

    async def _exchange(self, job: Job, instance: Instance, begun: Begun | None) -> bool:
        """Whether the engine's answer was complete. Raises Failure while another engine may still be asked."""
        if begun is not None and begun.message is not None:
            message, connection = begun.message, begun.connection
        else:
            message, connection = self.message(job, instance), self._pool.idle(instance.url)
        stale = False
        while True:
            if connection is None:
                connection = await self._connect(instance, stale)
            if begun is not None and begun.answer is not None:
                answer, broken = begun.answer, begun.broken
            else:
                if self._routes.ready(job.ask.key, instance.id) is None:
                    self._pool.park(connection)
                    raise _Moved
                answer, broken = self.ask(job, connection, message), None
            used, waiting, begun = connection, begun is None, None
            try:
                if waiting:
                    with self._prefill.deadline(job, instance, answer):
                        broken = await answer.verdict
                stale = broken is not None and broken.stale
                if not stale:
                    judge(job, answer, broken, job.patience is not None and job.patience.exhausted)
                    self._health.answered(job, self._now())
                    self._prefill.accepted(job)
                    message = []  # a stream may take minutes
                    return await self._pass(job, instance, answer, used)
            finally:
                if not stale and not answer.complete and not answer.events.done:
                    used.abort()
            connection = None

    async def _connect(self, instance: Instance, stale: bool) -> Upstream:
        try:
            return await self._pool.connect(instance.url)
        except Broken as error:
            # Gone between two connections: what closed the first one may be this very request.
            raise Failure("reset" if stale else error.why, died=stale, sent=stale) from None

    async def _pass(self, job: Job, instance: Instance, answer: Answer, connection: Upstream) -> bool:
        """Send the answer to the client as it comes."""
        reply = job.reply
        job.status = answer.status
        job.first_at, job.last_at = answer.first_at, answer.last_at
        if answer.stream and answer.events.fault is not None:
            fault = answer.events.fault
            job.status, job.error = fault.status, "engine-refused"
            reply.whole(
                fault.status,
                self.fields(job, self._now()),
                error_body(fault.message, "invalid_request_error", None, "engine_refused", job.request.id),
            )
            return True
        if not answer.stream and answer.complete:
            self.pass_whole(job, answer, self._now())
            return True
        key, name, telemetry = job.ask.key, instance.id, self._telemetry
        if answer.stream:
            if job.router is not None:
                job.router.first_token(job.route.id, self._now())
                self._holding.first_token(job, self._now())
            if self._rows is not None and job.handoff is None and answer.first_at is not None:
                self._rows.first_token(job.route.id, answer.first_at)
            assert answer.first_at is not None
            limit = job.ask.model.objectives.ttft_limit(self._routes.prompt_tokens(key, job.route))
            telemetry.first_token(key, name, answer.first_at - job.request.received, limit)
        renaming = _renaming(job, answer)
        if renaming is not None:
            answer.rewrite, answer.rewrite_plain = renaming.events, renaming.pieces
        length = None if answer.stream or renaming is not None else _length(answer.fields)
        reply.flow = partial(_follow_pace, answer, connection)
        reply.begin(answer.status, passed_back(answer.fields) + self.fields(job, self._now()), length=length)
        reply.pulses = reply.pulses and answer.stream
        job.said = Said(self._limits.continued_bytes) if answer.stream and continuable(job.ask) else None
        answer.told = job.said.add if job.said is not None else None
        if (
            answer.stream and job.said is None
        ):  # nobody will be asked again: thousands of streams need not keep their prompts
            job.fingerprint = job.known_by(self._quarantine.fingerprint)
            job.request.body = b""
            job.ask.forget()
        answer.pass_to(reply, lambda seconds: telemetry.inter_token(key, name, seconds))
        why = await self._passed_on(job, instance, answer, connection)
        if why is None:
            return True
        if why == "timeout" and answer.paused:
            job.client_gone = (
                True  # the silence is the client's: it has not read for so long that the engine was paused
            )
            reply.cut()
            return False
        job.error = why
        if answer.stream:
            text = f"{_WORDS.get(why, 'the engine failed')}; the answer is incomplete"
            reply.broken(error_event(text, f"stream_{why.replace('-', '_')}", job.request.id))
        else:
            reply.cut()
        return False

    def _died(self, job: Job, instance: str, began: float | None) -> bool:
        """An engine broke off on a request that it had been sent at ``began``; whether no engine should get it any more."""
        now = self._now()
        return self._quarantine.died(
            job.known_by(self._quarantine.fingerprint), instance, now if began is None else began, now
        )

    def _acquit(self, job: Job, now: float) -> None:
        """An engine has done what the request asked for; hashes the body only when it may be a suspect's."""
        if job.story is not None and job.story.suspicious:
            return
        if job.fingerprint is not None or self._quarantine.knows(job.ask.body):
            self._quarantine.answered(job.known_by(self._quarantine.fingerprint), now)

    async def _passed_on(self, job: Job, instance: Instance, answer: Answer, connection: Upstream) -> str | None:
        """Wait until the answer has been sent, perhaps its rest by another engine; None or what went wrong."""
        kept = KeepAlive(job.reply, self._limits.keep_alive_seconds, self._pool.loop)
        try:
            if answer.stream:
                kept.begin(answer)
            why = await answer.ended
            job.last_at, job.events = answer.last_at, answer.events.count
            job.counted(answer.events.usage)
            if why is None or (why == "timeout" and answer.paused):
                return why
            self._health.broke(job, instance.id, why)
            held = why == "cut" and self._died(job, instance.id, job.dispatched_at)
            if job.said is None or held:
                return why
            if not answer.complete:
                connection.abort()
            return await self._resume.rest(job, job.said, why, kept)
        finally:
            kept.end()
            job.reply.flow = None

    def pass_whole(self, job: Job, answer: Answer, now: float) -> None:
        """Send a whole plain answer."""
        body, kind = answer.whole_body, JSON
        fields = passed_back(answer.fields, but=b"content-type") + self.fields(job, now)
        if job.ask.opaque and b"content-type" in answer.fields:
            kind = answer.fields[b"content-type"].decode("latin-1")
        if answer.status >= 400:
            job.error = "engine-refused"
            if not is_error_object(body):
                kind, body = JSON, not_served(answer.status, job.request.id)
        renaming = _renaming(job, answer)
        body = body if renaming is None else renaming.whole(body)
        job.reply.whole(answer.status, fields, body, kind=kind)

    def fields(self, job: Job, now: float) -> str:
        """The header fields that say where a request went and why, and how long that took."""
        where = self._named.of(job.instance_id) if job.instance is not None else named("gateway")
        rule = job.decision.rule if job.decision is not None else "none"
        sent = job.dispatched_at
        begun = job.request.received
        times = timing(now - begun, -1.0) if sent is None else timing(sent - begun, now - sent)
        traced = job.trace.reply_field if job.trace is not None else ""
        return f"{where}{rule}\r\nx-fairlead-decision: {job.id}\r\nserver-timing: {times}\r\n{traced}"


def _follow_pace(answer: Answer, connection: Upstream, paused: bool) -> None:
    """The client keeps up, or not: so does the engine."""
    answer.paused = paused
    connection.pause(paused)


def _renaming(job: Job, answer: Answer) -> Renaming | None:
    """How the client comes to see the name that it asked for; None where the engine knows the model by its own, or says no JSON."""
    name = None if job.instance is None else job.instance.served_name
    if name is None or not (answer.stream or _JSON_OR_EVENTS.search(answer.fields.get(b"content-type", b""))):
        return None
    return Renaming(name, job.ask.parsed.model)


def _rounded(tokens: float) -> int:
    """As ``round`` does it, without the call."""
    whole = int(tokens)
    more = tokens - whole
    return whole + 1 if more > 0.5 or (more == 0.5 and whole % 2 == 1) else whole


def _length(fields: dict[bytes, bytes]) -> int | None:
    value = fields.get(b"content-length", b"")
    return int(value) if value.isdigit() else None
