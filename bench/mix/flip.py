"""Sixteen engines, prefill and decode apart, whose traffic turns from long prompts with short answers to the opposite.

Token-level engines (the simulator's cores) on a virtual clock. The gateway holds every request until a prefill engine has
room for its prompt (P/D-Serve's forwarding on demand: no queue in front of an engine), lets the KV travel, and chooses the
decode engine when it has arrived. An engine that changes roles takes nothing new, ends what it has, is away for
``switch_seconds``, and comes back in the other role. Every five seconds a controller sees what was counted and says how
many should prefill.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from fairlead.fleet import Objectives, Role
from fairlead.profile import EngineProfile
from fairlead_autoscaler.roles import DECODE_FILL, Balancer, Seen, Split, Traffic, Transfer, rates, split
from fairlead_sim.engine import EngineCore
from fairlead_sim.sequence import Sequence as EngineSequence

LARGE = EngineProfile(
    "L",
    prefill_token_seconds=9e-5,
    step_seconds=12e-3,
    sequence_seconds=4e-5,
    resident_token_seconds=8.7e-8,
    kv_tokens=400_000,
    step_tokens=1_024,
)
"""The large pool of the study (``autoscaling.md`` §6)."""
KEPT = Objectives(target=0.99, ttft_seconds=2.0, itl_seconds=0.1)
FAR = Transfer(0.02, 131e3 / 12e9)
LONG, CHATTY = (8_000, 100), (1_000, 800)
ENGINES = 16
TICK_SECONDS = 5.0
PREFILL_TIMEOUT_SECONDS = 20.0
"""A prefill engine's whole answer (``Limits.handoff_prefill_seconds``)."""
_BLOCK = 50

Controller = Callable[[Seen], int]


@dataclass(slots=True)
class Request:
    """One request and what became of it, in seconds; None = not yet."""

    id: int
    arrival: float
    prompt: int
    output: int
    sent: float | None = None  # to a prefill engine
    prefilled: float | None = None
    first: float | None = None
    done: float | None = None


@dataclass(slots=True)
class _Engine:
    role: Role
    core: EngineCore
    stepping: bool = False
    wanted: Role | None = None  # the role that it is to change to


@dataclass(slots=True)
class Run:
    """What came of it. ``roles`` are (when, ready prefill engines, ready decode engines, prefill engines asked for) at
    every tick."""

    requests: list[Request]
    roles: list[tuple[float, int, int, int]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Until the last answer was complete."""
        return max(one.done or 0.0 for one in self.requests)

    def throughput(self, since: float = 0.0) -> float:
        """Requests per second of those that arrived from ``since`` on, until the last of them was done."""
        counted = [one for one in self.requests if one.arrival >= since]
        return len(counted) / (max(one.done or 0.0 for one in counted) - since)

    @property
    def prefill_timeouts(self) -> int:
        """Prompts that were with a prefill engine longer than gateways wait for it."""
        return sum([(one.prefilled or 0.0) - (one.sent or 0.0) > PREFILL_TIMEOUT_SECONDS for one in self.requests])

    def patience_lost(self, seconds: float) -> int:
        """Requests whose first token took longer."""
        return sum([(one.first or math.inf) - one.arrival > seconds for one in self.requests])

    def settled(self, since: float, best: int, within: int = 1) -> float | None:
        """Seconds from ``since`` until the ready engines of both roles are within so many of a division with ``best`` for prefill,
        and stay there while requests arrive; None = never."""
        end = self.requests[-1].arrival
        after = [
            (at, max(abs(prefill - best), abs(decode - ENGINES + best)) <= within)
            for at, prefill, decode, _ in self.roles
            if since <= at <= end
        ]
        wrong = [at for at, right in after if not right]
        if not wrong:
            return 0.0
        later = [at for at, _ in after if at > wrong[-1]]
        return later[0] - since if later else None


class Fleet:
    """``controller`` says how many engines should prefill; None leaves the division as it begins."""

    def __init__(self, prefill: int, controller: Controller | None, *, switch_seconds: float = 10.0) -> None:
        roles = [Role.PREFILL] * prefill + [Role.DECODE] * (ENGINES - prefill)
        self._engines = [_Engine(role, _core()) for role in roles]
        self._controller = controller
        self._switch_seconds = switch_seconds
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()
        self._held: deque[Request] = deque()
        self._arrived: deque[Request] = deque()  # prefilled, KV there or on its way, and no decode engine yet
        self._asked = prefill
        self._counted = [0.0] * 4  # arrivals, prompt tokens, generated tokens, ended answers since the last tick
        self._names: dict[str, Request] = {}
        self._left = 0

    def serve(self, requests: Sequence[Request]) -> Run:
        """Every request to its end."""
        run = Run(list(requests))
        self._left = len(requests)
        for one in requests:
            self._later(one.arrival, lambda now, one=one: self._arrive(one, now))
        self._later(TICK_SECONDS, lambda now: self._tick(run, now))
        while self._left:
            now, _, act = heapq.heappop(self._heap)
            act(now)
        return run

    def _later(self, when: float, act: Callable[[float], None]) -> None:
        heapq.heappush(self._heap, (when, next(self._order), act))

    # A request's way -----------------------------------------------------------------------------------------------------

    def _arrive(self, request: Request, now: float) -> None:
        self._counted[0] += 1
        self._counted[1] += request.prompt
        self._held.append(request)
        self._forward(now)

    def _forward(self, now: float) -> None:
        """Held prompts to prefill engines with room, unless what is prefilled waits for decode already."""
        open_now = [one for one in self._engines if one.role is Role.PREFILL and one.wanted is None]
        waiting = sum([one.prompt for one in self._arrived])
        while self._held and waiting < len(open_now) * LARGE.kv_tokens / 4:
            chosen = min(open_now, key=_unprefilled, default=None)
            if chosen is None or _unprefilled(chosen) >= LARGE.step_tokens:
                return
            request = self._held.popleft()
            request.sent = now
            self._add(chosen, request, EngineSequence(f"p{request.id}", now, request.prompt, 1, lookup=False), now)

    def _place(self, now: float) -> None:
        """Prefilled requests to the decode engine with the fewest sequences that has room for all of the answer."""
        while self._arrived:
            request = self._arrived[0]
            able = [
                one for one in self._engines if one.role is Role.DECODE and one.wanted is None and _room(one, request)
            ]
            if not able:
                return
            self._arrived.popleft()
            sequence = EngineSequence(f"d{request.id}", now, request.prompt, request.output, lookup=False)
            sequence.pulled_tokens = request.prompt - 1
            self._add(min(able, key=lambda one: len(one.core.sequences())), request, sequence, now)

    def _add(self, engine: _Engine, request: Request, sequence: EngineSequence, now: float) -> None:
        self._names[sequence.id] = request
        engine.core.add(sequence)
        self._step(engine, now)

    def _step(self, engine: _Engine, now: float) -> None:
        """Begin the engine's next step, if it has anything to do and is not in one."""
        if engine.stepping:
            return
        step = engine.core.step(now)
        if step is None:
            if engine.wanted is not None:
                self._switch(engine, now)
            return
        engine.stepping = True

        def end(at: float) -> None:
            engine.stepping = False
            if engine.role is Role.DECODE:
                self._counted[2] += len(step.tokens)
                for sequence in step.first:
                    self._names[sequence.id].first = at
            for sequence, _ in step.finished:
                self._ended(engine, self._names.pop(sequence.id), at)
            self._forward(at)
            self._place(at)
            self._step(engine, at)

        self._later(now + step.seconds, end)

    def _ended(self, engine: _Engine, request: Request, now: float) -> None:
        if engine.role is Role.PREFILL:
            request.prefilled = now

            def there(at: float) -> None:
                self._arrived.append(request)
                self._place(at)

            self._later(now + FAR.of(request.prompt), there)
            return
        request.done = now
        self._counted[3] += 1
        self._left -= 1

    # Roles ---------------------------------------------------------------------------------------------------------------

    def _tick(self, run: Run, now: float) -> None:
        decoding = [sequence for one in self._engines if one.role is Role.DECODE for sequence in one.core.sequences()]
        age = sum([one.generated for one in decoding]) / len(decoding) if decoding else None
        arrivals, prompts, generated, finished = self._counted
        self._counted = [0.0] * 4
        seen = Seen(
            now,
            arrivals,
            prompts,
            generated,
            finished,
            self._asked,
            ENGINES - self._asked,
            float(len(self._held)),
            float(sum([one.prompt for one in self._held])),
            age,
        )
        if self._controller is not None:
            self._asked = self._controller(seen)
            self._change(now)
        ready = [one.role for one in self._engines if one.wanted is None]
        run.roles.append((now, ready.count(Role.PREFILL), ready.count(Role.DECODE), self._asked))
        if self._left:
            self._later(now + TICK_SECONDS, lambda at: self._tick(run, at))

    def _change(self, now: float) -> None:
        """Let as many engines change roles as it takes, those with the least to do first."""
        becoming = sum([(one.wanted or one.role) is Role.PREFILL for one in self._engines])
        source, target = (Role.PREFILL, Role.DECODE) if becoming > self._asked else (Role.DECODE, Role.PREFILL)
        able = [one for one in self._engines if one.role is source and one.wanted is None]
        for one in sorted(able, key=lambda one: len(one.core.sequences()))[: abs(becoming - self._asked)]:
            one.wanted = target
            self._step(one, now)

    def _switch(self, engine: _Engine, now: float) -> None:
        """The engine is empty: away, and then back in its new role."""
        engine.stepping = True

        def back(at: float) -> None:
            engine.role, engine.wanted = engine.wanted or engine.role, None
            engine.core, engine.stepping = _core(), False
            self._forward(at)
            self._place(at)

        self._later(now + self._switch_seconds, back)


def _core() -> EngineCore:
    return EngineCore(LARGE, block_tokens=_BLOCK, max_queue=1 << 30, events=False)


def _unprefilled(engine: _Engine) -> int:
    return sum([one.prompt_tokens - one.computed for one in engine.core.sequences()])


def _room(engine: _Engine, request: Request) -> bool:
    here = engine.core.sequences()
    held = sum([one.prompt_tokens + one.max_tokens + _BLOCK for one in here])
    return len(here) < LARGE.max_sequences and held + request.prompt + request.output + _BLOCK <= LARGE.kv_tokens


# What is asked -------------------------------------------------------------------------------------------------------


def best_split(shape: tuple[int, int]) -> Split:
    """The division that carries most of one kind of request."""
    each = rates(LARGE, LARGE, [Traffic(1.0, float(shape[0]), float(shape[1]))], KEPT, transfer=FAR, busy=DECODE_FILL)
    assert each is not None
    return split(ENGINES, 1.0 / each.prefill, 1.0 / each.decode)


def balancer() -> Controller:
    """The autoscaler's."""
    core = Balancer(LARGE, LARGE, KEPT, transfer=FAR)
    return lambda seen: core.step(seen).prefill


def traffic(parts: Sequence[tuple[tuple[int, int], float, float]], seed: int) -> list[Request]:
    """Poisson arrivals: parts of (shape, requests per second, seconds), one after the other."""
    draw, made, begin = random.Random(seed), [], 0.0
    for (prompt, output), rate, seconds in parts:
        at = begin
        while (at := at + draw.expovariate(rate)) < begin + seconds:
            made.append(Request(len(made), at, prompt, output))
        begin += seconds
    return made
