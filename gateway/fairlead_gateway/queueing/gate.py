"""When a request goes to an engine: at once, later, or not at all.

**At once** unless there is a reason to hold. The gate is open while (a) all requests want the same (one objective, one tenant,
one tier: then any order is as good as that of arrival, and the engine's own queue is as good as ours) and no engine's memory is
near its end, or (b) some engine has room. Holding has a price (an engine that has finished waits for the next request to travel),
and by itself gains nothing where routing is right; it pays where somebody should overtake, and where an engine would put requests
back.

**Room** of an engine: what waits there for its first token fills less than ``ROOM_STEPS`` of one step, and the request's memory
fits at the worst moment still to come (``memory``). A long prompt (``pools``) has room where nothing waits at all: an engine puts
what waits into one step, and short prompts beside the first chunk of a long one get their first token when all of that step is
computed (at a load of 0.95 to 1 that had cost the short class 6 to 12 of a hundred). So that short ones cannot fill every engine up
again for ever, the one with the least before it is kept for the long prompt whose turn it is, and works off what it has. Long
prompts have room on as many engines as short ones leave them. Who goes next is ``order``'s to say. If the memory of who is next fits
nowhere, nobody goes: a request that needs much would otherwise be passed by small ones for ever, and engines that are not refilled
drain towards it (Llumnix counts the head of the queue as load for the same reason).

**Not at all**: a sheddable request whose objective is beyond what the line's pace promises (429), anybody when the line is at its
limits, and who has waited as long as anybody may (503; a sheddable one at three objectives, where another would go before all).
Each says when to come back, by the line's pace.

Pure: the caller says what time it is and what the engines have before them, in any of the gateway, the simulator and tests.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fairlead.limits import Limits
from fairlead_gateway.learning.lengths import Lengths, Planned
from fairlead_gateway.queueing.backlog import Backlogs
from fairlead_gateway.queueing.drain import Drain
from fairlead_gateway.queueing.memory import Memory
from fairlead_gateway.queueing.order import Line, Turn, Waiting
from fairlead_gateway.queueing.pools import Pools
from fairlead_gateway.routing.request import RouteRequest

ROOM_STEPS: Final = 0.3
LOOK_SECONDS: Final = 0.02
"""How often those who drive a gate look at what is held when nothing happens: others' work ends without a word."""
SPREAD: Final = 1.5
"""Objectives that far apart are different ones."""
LEARN_ALL: Final = 1_000
LEARN_EVERY: Final = 8
"""So many answers are counted each; then one of so many, which is enough for shares and spares most requests the counting."""
_CLASSES: Final = 256
_NOBODY: Final[frozenset[str]] = frozenset()
_LONG: Final = (True,)


class Kind(StrEnum):
    """What becomes of a request that arrives."""

    PASS = "pass"
    HOLD = "hold"
    REFUSE = "refuse"


@dataclass(slots=True)
class Engine:
    """A ready engine: prefill seconds before it (all gateways'), seconds that a full step of prefill takes, memory in tokens
    (None: not known), and tokens that others than this process have there."""

    id: str
    backlog_seconds: float
    step_seconds: float
    kv_tokens: float | None = None
    others_tokens: float = 0.0


@dataclass(slots=True)
class Verdict:
    """``full`` are the engines that it should not go to. Of a refusal: ``retry_after`` in seconds; ``shed`` for its tier's sake."""

    kind: Kind
    rule: str
    reason: str
    full: frozenset[str] = _NOBODY
    retry_after: float | None = None
    shed: bool = False


@dataclass(slots=True)
class Release:
    """Who goes now, by which rule of ``order``, past which engines, and how long it was held."""

    id: str
    rule: str
    reason: str
    full: frozenset[str]
    waited_seconds: float

    def words(self) -> str:
        """As the decision says it."""
        return f"held for {self.waited_seconds:.3f} s ({self.rule}: {self.reason})"


@dataclass(slots=True)
class Asked:
    """A request before the gate. ``kind`` is the class whose answers are alike, ``sheddable`` what its tier says."""

    waiting: Waiting
    request: RouteRequest
    prompt_tokens: float
    kind: Hashable = None
    sheddable: bool = False


_OPEN: Final = Verdict(Kind.PASS, "open", "nobody waits, and there is no reason to hold")


class Gate:
    """Of one model, in one process. ``line`` is another order to compare with; without
    ``pooled`` long prompts go as others do."""

    def __init__(self, limits: Limits, line: Line | None = None, *, pooled: bool = True) -> None:
        self._limits = limits
        self._line = Line() if line is None else line
        self._pooled = pooled
        self._asked: dict[str, Asked] = {}
        self._bytes = 0
        self._pools = Pools()
        self._drain = Drain()
        self._lengths = Lengths(most=_CLASSES)
        self._planned = Planned(self._lengths)
        self._answers = 0
        self._who: tuple[Hashable, int] | None = None
        self._mixed = False
        self.memory = Memory(self._planned.coming)
        self._backlogs = Backlogs()

    def engine(
        self,
        id: str,
        told_seconds: float,
        step_seconds: float,
        kv_tokens: float | None,
        others_tokens: float,
        now: float,
    ) -> Engine:
        """An engine as the gate sees it ``now``; ``told_seconds`` of prefill there have had no first token yet."""
        return Engine(id, self._backlogs.left(id, told_seconds, now), step_seconds, kv_tokens, others_tokens)

    # Those that come -----------------------------------------------------------------------------------------------------

    def arrived(self, asked: Asked, engines: Sequence[Engine], now: float) -> Verdict:
        """A request came. It is held from here on where the verdict says so."""
        return self.passes(asked, engines, now) or self.joins(asked, engines, now)

    def passes(self, asked: Asked, engines: Sequence[Engine], now: float) -> Verdict | None:
        """A request came: it goes at once, or None."""
        one = asked.waiting
        one.long = self._pools.arrived(one.objective_seconds, one.own_seconds, now)
        return None if self._asked else self._straight(asked, engines, now)

    def joins(self, asked: Asked, engines: Sequence[Engine], now: float) -> Verdict:
        """A request that came and did not go at once is held, or refused."""
        one = asked.waiting
        refused = self._refused(asked, len(engines), now)
        if refused is not None:
            return refused
        if not self._asked:
            self._drain.began(now)
        self._asked[one.id] = asked
        self._bytes += one.size
        self._line.add(one)
        rule = "held-starting" if not engines else "held"
        return Verdict(Kind.HOLD, rule, self._why(asked, engines, now))

    def ordered(self) -> bool:
        """Whether requests differ in what they may expect, so that order matters."""
        return self._mixed or self._pools.spread >= SPREAD

    def _straight(self, asked: Asked, engines: Sequence[Engine], now: float) -> Verdict | None:
        who = (asked.waiting.tenant, asked.waiting.tier)
        if self._who is None:
            self._who = who
        elif who != self._who:
            self._mixed = True
        if not engines:
            return None
        full = self._full(asked, engines, now)
        if not full:
            return _OPEN
        if len(full) < len(engines):
            return Verdict(Kind.PASS, "room", f"{len(engines) - len(full)} of {len(engines)} engines have room", full)
        return None

    def _full(self, asked: Asked, engines: Sequence[Engine], now: float, kept: str | None = None) -> frozenset[str]:
        """The engines that have no room for it."""
        ordered, long, found = self.ordered(), self._apart(asked.waiting), []
        if long and self._closed(engines, now):
            return frozenset(one.id for one in engines)
        for one in engines:
            if (ordered and not _has_room(one, long=long)) or one.id == kept or self._lacks(asked, one, now):
                found.append(one.id)
        return frozenset(found) if found else _NOBODY

    def _lacks(self, asked: Asked, engine: Engine, now: float) -> bool:
        if engine.kv_tokens is None:
            return False
        return (
            self.memory.lacks(
                engine.id,
                engine.kv_tokens,
                asked.request,
                asked.prompt_tokens,
                asked.kind,
                now,
                tier=asked.waiting.tier,
                others_tokens=engine.others_tokens,
            )
            > 0.0
        )

    def _apart(self, waiting: Waiting) -> bool:
        """Whether it is a long prompt, where those have engines of their own."""
        return waiting.long and self._pooled and self.ordered()

    def _closed(self, engines: Sequence[Engine], now: float) -> bool:
        """Whether as many engines are at long prompts as may be."""
        boundary = self._pools.boundary_seconds
        busy = sum([one.backlog_seconds > boundary for one in engines])
        return busy >= self._pools.long_engines(len(engines), now, short_late=self._line.late(long=False))

    def _why(self, asked: Asked, engines: Sequence[Engine], now: float) -> str:
        if not engines:
            return "no engine is ready; it goes when one is"
        if len(self._asked) > 1:
            return f"{len(self._asked) - 1} are held before it or beside it"
        if self._apart(asked.waiting) and self._closed(engines, now):
            return f"as many of {len(engines)} engines are at long prompts as the short ones leave them"
        if any(self._lacks(asked, one, now) for one in engines):
            return f"its answer is not expected to fit the memory of any of {len(engines)} engines that have room"
        least = min(one.backlog_seconds for one in engines)
        return f"all {len(engines)} engines are busy, the least for {least:.2f} s; who goes next is chosen here"

    # Those that do not -----------------------------------------------------------------------------------------------------

    def expected_wait(self, tier: int, engines: int, now: float) -> float:
        """Seconds until those that are held now, of this tier or a higher one, have gone, by the line's pace."""
        work = sum([one.own_seconds for one in self._line.held() if one.tier <= tier])
        return work / self._drain.rate(engines, now)

    def _refused(self, asked: Asked, engines: int, now: float) -> Verdict | None:
        one, limits = asked.waiting, self._limits
        if len(self._asked) >= limits.hold_requests or self._bytes + one.size > limits.hold_bytes:
            wait = self.expected_wait(one.tier, engines, now)
            reason = f"{len(self._asked)} requests ({self._bytes:,} bytes) are held already"
            return Verdict(Kind.REFUSE, "line-full", reason, retry_after=wait, shed=asked.sheddable)
        if not asked.sheddable or not engines:
            return None
        wait = self.expected_wait(one.tier, engines, now)
        spare = one.objective_seconds - one.own_seconds
        if wait <= spare:
            return None
        reason = f"{wait:.1f} s of work is held before it, and its first token is due in {one.objective_seconds:.1f} s"
        return Verdict(Kind.REFUSE, "shed", reason, retry_after=wait - max(0.0, spare), shed=True)

    def expired(self, engines: int, now: float, since: float = -math.inf) -> list[tuple[str, Verdict]]:
        """Those that are held no longer: who has waited as long as anybody may, and the sheddable that would otherwise soon go
        before higher tiers for being overdue. Nobody's time counts before ``since``, when there was no engine yet."""
        before = now - self._limits.hold_seconds
        found = [
            asked
            for asked in self._asked.values()
            if max(asked.waiting.arrival, since) <= before or (asked.sheddable and asked.waiting.overdue_at <= now)
        ]
        told = []
        for asked in found:
            one = asked.waiting
            self.left(one.id)
            wait = self.expected_wait(one.tier, engines, now)
            reason = f"it was held for {now - one.arrival:.1f} s and no engine had room for it"
            rule = "shed-late" if asked.sheddable else "held-too-long"
            told.append((one.id, Verdict(Kind.REFUSE, rule, reason, retry_after=wait, shed=asked.sheddable)))
        return told

    def left(self, request_id: str) -> bool:
        """Its client has gone, or its time is over. False when it is not held."""
        asked = self._asked.pop(request_id, None)
        if asked is None:
            return False
        self._bytes -= asked.waiting.size
        self._line.remove(request_id)
        return True

    def __len__(self) -> int:
        return len(self._asked)

    @property
    def held_bytes(self) -> int:
        """Of the bodies that are held."""
        return self._bytes

    # Those that go -------------------------------------------------------------------------------------------------------

    def release(self, engines: Sequence[Engine], now: float) -> Release | None:
        """The next of those that are held, if some engine has room for it. Ask again once it has been sent."""
        if not self._asked or not engines:
            return None
        ordered = self.ordered()
        if ordered and not any(_has_room(one, long=False) for one in engines):
            return None
        turn, kept = self._line.peek(now), None
        if turn is not None and self._apart(turn.request):
            if self._closed(engines, now):
                turn = self._line.peek(now, _LONG)
            elif not any(_has_room(one, long=True) for one in engines):
                kept = min(engines, key=_backlog).id
                turn = self._line.peek(now, _LONG)
        if turn is None:
            return None
        asked = self._asked[turn.request.id]
        full = self._full(asked, engines, now, kept)
        if len(full) == len(engines):
            return None
        return self._gone(turn, full, now)

    def _gone(self, turn: Turn, full: frozenset[str], now: float) -> Release:
        one = turn.request
        self._line.take(turn)
        self._drain.went(one.own_seconds, now)
        del self._asked[one.id]
        self._bytes -= one.size
        return Release(one.id, turn.rule, turn.reason, full, now - one.arrival)

    # What engines do -----------------------------------------------------------------------------------------------------

    def finished(
        self, request_id: str, kind: Hashable, prompt_tokens: float, output_tokens: int | None, now: float
    ) -> None:
        """An answer is over; ``output_tokens`` None when it was cut, or its engine did not tell."""
        self.memory.ended(request_id, now, output_tokens)
        if not output_tokens:
            return
        self._answers += 1
        if self._answers <= LEARN_ALL or self._answers % LEARN_EVERY == 0:
            self._lengths.learn(kind, prompt_tokens, output_tokens, now)


def _has_room(engine: Engine, *, long: bool) -> bool:
    """Whether it can begin one more soon, or a long prompt at once."""
    return engine.backlog_seconds <= 0.0 if long else engine.backlog_seconds < ROOM_STEPS * engine.step_seconds


def _backlog(engine: Engine) -> float:
    return engine.backlog_seconds
