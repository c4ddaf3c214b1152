"""The gateway: the rooms in their order, and what is answered without an engine.

listen → model → prompt → route → forward → settle. ``Gateway`` is also what the management port looks at (``View``).
"""

import asyncio
import logging
import random
import traceback
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from fairlead.clock import Clock
from fairlead.fleet import Fleet
from fairlead.lag import LoopLag
from fairlead.limits import Limits
from fairlead.profile import EngineProfile
from fairlead_gateway import asking, quiet_log
from fairlead_gateway.breaker import Breaker
from fairlead_gateway.decision_log import DecisionLog, Logged
from fairlead_gateway.errors import GatewayError, UnknownPath, WrongMethod
from fairlead_gateway.forward import Begun, Forward
from fairlead_gateway.head import Head
from fairlead_gateway.health import Health
from fairlead_gateway.holding import Holding
from fairlead_gateway.job import Job
from fairlead_gateway.keys import Keys
from fairlead_gateway.learning.rows import RowTeller
from fairlead_gateway.listen import Listener, Request
from fairlead_gateway.memory import Memory, Share
from fairlead_gateway.model import PATHS, Ask, find, shown_names, understand
from fairlead_gateway.passed import METHODS, passed_on, passes
from fairlead_gateway.prefill import Prefill
from fairlead_gateway.prompt import route_request
from fairlead_gateway.quarantine import Quarantine
from fairlead_gateway.reach import Reach
from fairlead_gateway.reply import Reply
from fairlead_gateway.retry import RetryBudget
from fairlead_gateway.route import Routes
from fairlead_gateway.routing import InstanceLoad, PrefixChain, RouteRequest
from fairlead_gateway.routing.index import Told
from fairlead_gateway.routing.shared import Siblings
from fairlead_gateway.samples import Samples
from fairlead_gateway.settle import CLIENT_GONE, settle
from fairlead_gateway.short import Host, Short, ShortWay
from fairlead_gateway.telemetry import Telemetry
from fairlead_gateway.upstream import Pool

if TYPE_CHECKING:  # most gateways observe nothing, and then need none of it
    from fairlead_gateway.observing import Observing

_IN_A_THREAD_BYTES = 256 * 1024
_MODELS = "/v1/models"
_DEFECT = "the gateway met a defect; it was logged with this id"
_log = logging.getLogger("fairlead.gateway")


class Gateway(Host):
    """One process's data plane. ``new_id`` makes request ids; ``secret`` keys all prompt hashes; no ``keys``: anyone may call;
    ``environ`` holds the tokens of engines; ``memory`` says how full it is; ``observing`` is told of every request;
    ``siblings`` are the other workers of this gateway; ``told`` hears what is sent where, for the index, which may ask for
    ``samples`` of it; ``rows`` hears when requests are sent, answered and over, to learn of engines."""

    def __init__(
        self,
        *,
        clock: Clock,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        secret: bytes,
        new_id: Callable[[], str],
        keys: Keys | None = None,
        environ: Mapping[str, str] = MappingProxyType({}),
        memory: Share | None = None,
        observing: "Observing | None" = None,
        siblings: Siblings | None = None,
        told: Told | None = None,
        samples: Samples | None = None,
        rows: RowTeller | None = None,
    ) -> None:
        self.clock = clock
        self._now = clock.now
        self.limits = limits
        self.lag = LoopLag(keep=3_000)  # one minute: every look at it sorts them
        telemetry = self.telemetry = Telemetry(clock, limits, self.lag)
        self._observe(observing)
        self.decisions = DecisionLog(limits.decision_log)
        self.listener = Listener(self, clock=clock, limits=limits, loop=loop, new_id=new_id)
        self.memory = Memory(limits, memory, self.listener.memory_short)
        self.memory.watch(loop)
        self.problems: Callable[[], list[str]] = list
        self._keys = keys
        draw = random.Random(f"{clock.wall()}").random
        breaker = Breaker(limits, draw)
        self._samples = samples
        self._rows = rows
        self._routes = Routes(secret=secret, limits=limits, breaker=breaker, siblings=siblings, told=told)
        self._prefill_routes = Routes(
            secret=secret, limits=limits, breaker=breaker, prefill=True, siblings=siblings, told=told
        )
        budget = RetryBudget(limits)
        self._health = Health(
            breaker, ready=self._routes.ready_ids, telemetry=telemetry, clock=clock, limits=limits, budget=budget
        )
        self.telemetry.standing = self._health.words
        self.reach = Reach(environ, clock.now)
        self._pool = Pool(limits, loop, self.reach)
        deaths = (siblings.died, siblings.cleared) if siblings is not None else (None, None)
        quarantine = self.quarantine = Quarantine(secret, limits, *deaths)
        self._prefill = Prefill(
            decoding=self._routes,
            prefilling=self._prefill_routes,
            pool=self._pool,
            telemetry=self.telemetry,
            clock=clock,
            limits=limits,
            quarantine=quarantine,
            draw=draw,
        )
        self._loop = loop
        self._build_ways(quarantine, budget)
        # One thread: more would not be faster, and each would make the loop wait longer for its turn.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="large-bodies")
        self._new_id = new_id
        self._started_wall = int(clock.wall())
        self._loaded = self._draining = False
        self._under_way: dict[str, asyncio.Task[None] | Short] = {}

    def _build_ways(self, quarantine: Quarantine, budget: RetryBudget) -> None:
        """The two ways to an engine and back, and who waits before them."""
        self.holding = Holding(
            routes=self._routes,
            telemetry=self.telemetry,
            limits=self.limits,
            clock=self.clock,
            loop=self._loop,
            keyed=self._keys is not None,
        )
        self._forward = Forward(
            routes=self._routes,
            pool=self._pool,
            telemetry=self.telemetry,
            decisions=self.decisions,
            clock=self.clock,
            limits=self.limits,
            health=self._health,
            quarantine=quarantine,
            prefill=self._prefill,
            budget=budget,
            samples=self._samples,
            rows=self._rows,
            holding=self.holding,
        )
        self._short = ShortWay(
            self,
            forward=self._forward,
            pool=self._pool,
            health=self._health,
            quarantine=quarantine,
            prefilling=self._prefill_routes,
            holding=self.holding,
            limits=self.limits,
            clock=self.clock,
        )

    def _observe(self, observing: "Observing | None") -> None:
        """Who is told of requests besides metrics and the decision log; nobody costs nothing."""
        self._observing = observing
        self._observers = tuple(observing.observers) if observing is not None else ()
        self._tracer = observing.tracer if observing is not None else None
        if observing is not None:
            observing.attach(self.telemetry)

    # The fleet and what the management port sees.

    def apply(self, fleet: Fleet) -> None:
        """Take over a snapshot; what is in flight goes on where it is."""
        self._routes.apply(fleet, self.clock.now())
        self._prefill_routes.apply(fleet, self.clock.now())
        self.reach.apply(fleet)
        self._prefill.keep_only(fleet.models)
        self._pool.keep_only(self._routes.addresses())
        self.holding.apply(fleet)
        self._loaded = True

    def heard(self, key: str, instance_id: str, chain: PrefixChain, pin: Hashable) -> None:
        """A sibling or another gateway sent a prompt there, of the session ``pin`` where that is not None."""
        now = self.clock.now()
        self._routes.heard(key, instance_id, chain, now, pin)
        self._prefill_routes.heard(key, instance_id, chain, now, pin)

    def hot(self, key: str, epoch: int, serving: frozenset[Hashable], prefilling: frozenset[Hashable]) -> None:
        """The hot prefixes of a model as all gateways see them; epoch 0: nobody tells them any more."""
        self._routes.hot(key, epoch, serving)
        self._prefill_routes.hot(key, epoch, prefilling)

    def corrected(
        self, key: str, instance_id: str, forget: str, gone: Sequence[Hashable], held: Sequence[tuple[Hashable, ...]]
    ) -> None:
        """What the index says of an instance of a model."""
        self._routes.corrected(key, instance_id, forget, gone, held)
        self._prefill_routes.corrected(key, instance_id, forget, gone, held)

    def profiled(self, profiles: Mapping[str, EngineProfile]) -> None:
        """What was learned of engines, by instance: from now on they are routed by that."""
        self._routes.profiled(profiles, self._now())

    def show_again(self) -> None:
        """The slots of the rows that siblings share have been given out anew."""
        self._routes.show_again()
        self._prefill_routes.show_again()

    def fleet(self) -> Fleet:
        """The present snapshot."""
        return self._routes.fleet

    def loads(self) -> Mapping[str, InstanceLoad]:
        """This gateway's own load by instance id."""
        return {**self._routes.loads(), **self._prefill_routes.loads()}

    def would(self, path: str, body: bytes, session: str | None) -> Logged:
        """Where a request would go just now, and why. Raises GatewayError as a request would be answered."""
        return asking.would(
            path,
            body,
            session,
            routes=self._routes,
            prefilling=self._prefill_routes,
            prefill=self._prefill,
            limits=self.limits,
            clock=self.clock,
        )

    def ready(self) -> tuple[bool, list[str]]:
        """Whether requests are answered, and what is wrong or degraded, in words."""
        notes = [*self.problems(), *self.reach.problems(), *self.memory.problems(), *quiet_log.problems()]
        if self._observing is not None:
            notes += self._observing.problems()
        if self._draining:
            return False, ["draining", *notes]
        if not self._loaded:
            return False, ["no fleet has been read yet", *notes]
        return True, notes

    # Requests, as listen hands them over.

    def admit(self, head: Head) -> str | None:
        """The name of the key that a request shows, None where nobody is asked for one. Raises NoKey."""
        caller = None if self._keys is None or head.path == "/readyz" else self._keys.caller(head)
        if self.memory.body_most is not None:
            self.memory.admit(head.length or 0)
        return caller

    def handle(self, request: Request, reply: Reply) -> None:
        """Answer now what needs no engine; start a task for the rest."""
        if self._observing is not None:
            request.client = reply.client()
        try:
            request.caller = self.admit(request.head)
            if self.memory.body_most is not None:
                self.memory.admit(len(request.body))
            path, method = request.head.path, request.head.method
            if path in PATHS:
                if _method_fits(method, ("POST",), reply):
                    self._start(request, reply)
            elif path == "/readyz" or path == _MODELS or path.startswith(_MODELS + "/"):
                if _method_fits(method, ("GET", "HEAD"), reply):
                    self._answer_here(path, reply)
                    if self._observing is not None and path != "/readyz":
                        self._observing.answered(request, reply, 200, None)
            elif passes(path):
                if _method_fits(method, METHODS, reply):
                    self._start(request, reply)
            elif path == "*":
                _method_fits(method, ("GET", "HEAD", "POST"), reply)
            else:
                raise UnknownPath("nothing is served under this path", hint="the API lies under /v1")
            if self._observing is not None and method == "OPTIONS":
                self._observing.answered(request, reply, 200, None)
        except GatewayError as error:
            self.refused(error, reply, request)

    def refused(
        self, error: GatewayError, reply: Reply, request: Request | None = None, job: Job | None = None
    ) -> None:
        """Answer with an error object; for what never reached an engine."""
        self.telemetry.rejected(job.ask.key if job is not None else None, error.status, error.code)
        if self._observing is not None:
            self._observing.answered(request, reply, error.status, error.code, job)
        self._send_error(error, reply, _own_fields(error.code))

    def in_flight(self) -> int:
        """Requests that engines are working on."""
        return len(self._under_way)

    def drain(self) -> None:
        """Be unready, take no new connection's request, let what is under way finish."""
        self._draining = True
        self.listener.drain()

    def close(self) -> None:
        """Cut what is left."""
        self.listener.close()
        for one in list(self._under_way.values()):
            one.cancel()
        self._short.overdue.close()
        self._prefill.close()
        self._pool.close()
        self.memory.close()
        if self._observing is not None:
            self._observing.close()
        self._reader.shutdown(wait=False, cancel_futures=True)

    # The request's way.

    def _start(self, request: Request, reply: Reply) -> None:
        """Understand a request and send it on its way; large bodies are read in a thread, so that others get their turn."""
        unique = request.id if request.id not in self._under_way else f"{request.id}~{self._new_id()}"
        if len(request.body) > _IN_A_THREAD_BYTES:
            self._run(unique, reply, self._understand(request, reply, unique))
            return
        job: Job | None = None
        try:
            ask, route = self._read(request, self._routes.fleet, unique)
            job = self._job(request, reply, unique, ask, route)
            if self._short.fits(job):
                self._short.go(job)
            else:
                self._run(unique, reply, self._serve(job, None))
        except GatewayError as error:
            self._ended(job, error, reply, request)
        except Exception as error:  # noqa: BLE001 - the boundary of a request: whatever happens, it gets an answer
            self._defect(unique, job, error, reply, request)

    def _job(self, request: Request, reply: Reply, unique: str, ask: Ask, route: RouteRequest) -> Job:
        self.telemetry.received(ask.key, self._routes.prompt_tokens(ask.key, route))
        job = Job(request, reply, unique, ask, route)
        if self._tracer is not None:
            job.trace = self._tracer.begin(request)
        return job

    def _run(self, unique: str, reply: Reply, work: Coroutine[None, None, None]) -> None:
        """Go on as a task."""
        task = self._under_way[unique] = self._loop.create_task(work)
        task.add_done_callback(partial(self._under_way.pop, unique))
        reply.gone = task.cancel

    async def _understand(self, request: Request, reply: Reply, unique: str) -> None:
        job: Job | None = None
        try:
            ask, route = await self._loop.run_in_executor(self._reader, self._read, request, self._routes.fleet, unique)
            job = self._job(request, reply, unique, ask, route)
        except GatewayError as error:
            self._failed(None, error, reply, request)
        except asyncio.CancelledError:
            self._left_early(request, reply, None)
        except Exception as error:  # noqa: BLE001 - the boundary of a request: whatever happens, it gets an answer
            self._defect(unique, None, error, reply, request)
        if job is not None:
            await self._serve(job, None)

    async def _serve(self, job: Job, begun: Begun | None) -> None:
        request, reply = job.request, job.reply
        try:
            await self._forward.carry(job, begun)
        except GatewayError as error:
            self._failed(job, error, reply, request)
        except asyncio.CancelledError:
            job.client_gone = True
            if not job.attempt:
                self._left_early(request, reply, job)
        except Exception as error:  # noqa: BLE001 - the boundary of a request: whatever happens, it gets an answer
            self._log_defect(job.id, error)
            self._failed(job, GatewayError(_DEFECT), reply, request)
        finally:
            self._settle(job)

    # What ``short`` says.

    def under_way(self, job: Job, short: Short) -> None:
        """The request is in flight; ``short.cancel`` ends it."""
        self._under_way[job.id] = short
        job.reply.gone = short.cancel

    def longer(self, job: Job, begun: Begun) -> None:
        """Go on as a task."""
        self._run(job.id, job.reply, self._serve(job, begun))

    def done(self, job: Job, error: GatewayError | None = None) -> None:
        """It has ended; with ``error`` the client has still to be told."""
        if job.id in self._under_way:
            del self._under_way[job.id]
        if error is not None:
            self._failed(job, error, job.reply, job.request)
        self._settle(job)

    def defect(self, job: Job, error: Exception) -> None:
        """Something of ours failed."""
        self._under_way.pop(job.id, None)
        self._defect(job.id, job, error, job.reply, job.request)

    # How requests end.

    def _ended(self, job: Job | None, error: GatewayError, reply: Reply, request: Request) -> None:
        self._failed(job, error, reply, request)
        if job is not None:
            self._settle(job)

    def _defect(self, unique: str, job: Job | None, error: Exception, reply: Reply, request: Request) -> None:
        self._log_defect(unique, error)
        self._ended(job, GatewayError(_DEFECT), reply, request)

    def _log_defect(self, unique: str, error: Exception) -> None:
        _log.error("request %s met a defect: %s\n%s", unique, type(error).__name__, _where(error))

    def _left_early(self, request: Request, reply: Reply, job: Job | None) -> None:
        """The client left before any engine was asked."""
        if job is not None:
            self.telemetry.left_early(job.ask.key)
        if self._observing is not None:
            self._observing.answered(request, reply, CLIENT_GONE, "client-gone", job)

    def _settle(self, job: Job) -> None:
        if job.attempt:
            settle(
                job,
                now=self._now(),
                telemetry=self.telemetry,
                decisions=self.decisions,
                observers=self._observers,
            )

    def _read(self, request: Request, fleet: Fleet, unique: str) -> tuple[Ask, RouteRequest]:
        if request.head.path in PATHS:
            ask = understand(request.head.path, request.body, fleet, self.limits)
        else:
            ask = passed_on(request.head, request.body, fleet, self.limits)
        return ask, route_request(ask, request.head, unique, self._routes.secret)

    def _failed(self, job: Job | None, error: GatewayError, reply: Reply, request: Request) -> None:
        if job is None or not job.attempt:
            self.refused(error, reply, request, job)
            return
        job.status, job.error = error.status, error.code
        if reply.begun:
            reply.cut()
        else:
            self._send_error(error, reply, self._forward.fields(job, self._now()))

    def _send_error(self, error: GatewayError, reply: Reply, fields: str) -> None:
        more = "".join(f"{name}: {value}\r\n" for name, value in error.fields)
        reply.whole(error.status, more + fields, error.body(reply.request_id))

    # Answers without an engine.

    def _answer_here(self, path: str, reply: Reply) -> None:
        if path == "/readyz":
            ready, notes = self.ready()
            body = msgspec.json.encode({"ready": ready, "notes": notes})
            reply.whole(200 if ready else 503, _own_fields("readyz"), body)
            return
        shown = shown_names(self._routes.fleet)
        if path in (_MODELS, _MODELS + "/"):
            listed = [self._model_object(name, model.namespace) for name, model in shown.items()]
            reply.whole(200, _own_fields("models"), msgspec.json.encode({"object": "list", "data": listed}))
            return
        name = path[len(_MODELS) + 1 :]
        model = find(name, self._routes.fleet)
        reply.whole(200, _own_fields("models"), msgspec.json.encode(self._model_object(name, model.namespace)))

    def _model_object(self, name: str, namespace: str) -> dict[str, str | int]:
        return {"id": name, "object": "model", "created": self._started_wall, "owned_by": namespace}


def _method_fits(method: str, known: Sequence[str], reply: Reply) -> bool:
    """Whether the path may be asked this way; OPTIONS is answered here. Raises WrongMethod."""
    if method in known:
        return True
    allow = ", ".join((*known, "OPTIONS"))
    if method != "OPTIONS":
        raise WrongMethod("this path is not asked with this method", hint=f"use {allow}", fields=(("allow", allow),))
    reply.whole(200, f"allow: {allow}\r\n{_own_fields('options')}", b"")
    return False


def _own_fields(reason: str) -> str:
    """The header fields of an answer that no engine was asked for."""
    return f"x-fairlead-instance: gateway\r\nx-fairlead-reason: {reason}\r\nx-fairlead-decision: none\r\nserver-timing: gateway\r\n"


def _where(error: Exception) -> str:
    """The lines of code that an error came through; its text is left out, it may hold a part of a prompt."""
    return "".join(traceback.format_tb(error.__traceback__))
