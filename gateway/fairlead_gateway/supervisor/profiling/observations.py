"""From dispatches, first tokens and ends to spans: stretches of an engine's time with all the work that was done in them.

An engine prefills in order, so a prompt's own prefill begins when it was sent or when the first token of the prompt before it
came, whichever is later. Two things blur that. A step's budget takes the end of one prompt and the beginning of the next, so
single prompts are measured too long and too short in turn; and prompts that end in one step show their first tokens together.
Both cancel in a *run*: prompts that follow one another without the engine having a moment without any are one observation,
from the start of the first to the first token of the last.

Decoding is seen over the whole of an answer, from its first token to its last: so many steps took so many seconds, and meanwhile
so many prompt tokens were computed for others.

Not everything is seen. An answer that is not streamed has no first token: when a prompt that came later has its own, the earlier
one's prefill must be over, and it counts as decoding from then on. Of other gateways' prompts only the sending is told: what they
were beside is not measured.

How many tokens a prompt really had to compute is told by the engine with the answer's end, so spans are given out then; where
an engine tells nothing, what was expected at the dispatch stands, and the span says that it is an assumption.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

MAX_RUN_PROMPTS: Final = 6
"""A run that goes on is cut after so many prompts: what the cut blurs is one chunk among that many prompts."""
SAME_STEP_SECONDS: Final = 0.0005
"""First tokens so near to one another came of one step."""


@dataclass(slots=True)
class ComputedWork:
    """What was computed: prompt tokens, pairs of tokens in attention, tokens found in the cache; and in how many steps."""

    computed: float = 0.0
    attention: float = 0.0
    cached: float = 0.0
    steps: float = 0.0

    def add(self, other: "ComputedWork") -> None:
        """Both together."""
        self.computed += other.computed
        self.attention += other.attention
        self.cached += other.cached
        self.steps += other.steps

    def minus(self, before: "ComputedWork") -> "ComputedWork":
        """What came after ``before``."""
        return ComputedWork(
            self.computed - before.computed,
            self.attention - before.attention,
            self.cached - before.cached,
            self.steps - before.steps,
        )

    @classmethod
    def of_prompt(cls, tokens: float, cached: float) -> "ComputedWork":
        """A prompt of ``tokens`` of which ``cached`` are found."""
        new = max(1.0, tokens - cached)
        return cls(new, new * (tokens - new / 2), tokens - new)


@dataclass(frozen=True, slots=True)
class Observation:
    """``seconds`` of an engine in which ``work`` was done beside ``sequences`` that decode, holding ``resident`` tokens on average.

    ``steps`` is how many steps it was where that is known (an answer's tokens), None for runs of prompts. ``assumed``: an engine
    did not tell what it had cached. ``waited``: it began while a step of decoding ran, which had to end first. ``most_tokens`` and
    ``most_sequences`` were there at most, those that waited included.
    """

    seconds: float
    work: ComputedWork
    sequences: float
    resident: float
    steps: float | None = None
    is_cache_assumed: bool = False
    began_mid_step: bool = False
    peak_tokens: float = 0.0
    peak_sequences: float = 0.0


@dataclass(slots=True)
class _TrackedPrompt:
    """A request on its way through the engine."""

    dispatched_at: float
    tokens: float
    cached: float
    first_token_at: float | None = None
    run: "_PrefillRun | None" = None
    cache_reported: bool = False
    work_before: ComputedWork | None = None  # all the work of the engine when its first token came
    area: float = 0.0  # the integrals of decoding sequences and resident tokens at that moment
    token_area: float = 0.0
    steps_before: float = 0.0
    is_unseen: bool = False  # nobody saw its first token
    is_blurred: bool = False  # others' prompts were computed while it decoded


@dataclass(slots=True, eq=False)
class _PrefillRun:
    """Prompts that followed one another without a pause."""

    start: float
    end: float
    area: float
    token_area: float
    prompts: list[_TrackedPrompt]
    area_end: float = 0.0
    token_area_end: float = 0.0
    steps: float = 0.0
    began_mid_step: bool = False
    peak_tokens: float = 0.0
    peak_sequences: int = 0
    is_blurred: bool = False  # others' work was in it
    unreported: int = 0  # prompts whose cached tokens are still to be told


class EngineObserver:
    """One instance as a gateway sees it. Feed it in order of time; it keeps what is in flight and one open run.
    ``step_tokens`` is the budget of a step."""

    def __init__(self, step_tokens: int) -> None:
        self._step_budget = max(1.0, float(step_tokens))
        self._step_budget_left = 0.0  # what the step that gave the last first token had left for the next prompt
        self._inflight: dict[str, _TrackedPrompt] = {}
        self._prefilling: OrderedDict[str, _TrackedPrompt] = (
            OrderedDict()
        )  # waiting, in the order in which they were sent
        self._busy_until = float("-inf")  # by others' prompts
        self._prefilling_tokens = 0.0
        self._decoding = 0
        self._decoding_prompt_tokens = 0.0  # tokens of prompts whose answers are under way
        self._steps_done = self._steps_before_sum = (
            0.0  # steps so far, and the sum over answers under way of those before them
        )
        self._step_seconds: float | None = None
        self._at = 0.0
        self._area = self._token_area = 0.0
        self._total_work = ComputedWork()
        self._run: _PrefillRun | None = None
        self._last_first_token_at = float("-inf")

    def on_dispatch(self, request: str, now: float, tokens: float, cached: float) -> None:
        """A prompt was sent; ``cached`` of its tokens should be there. A request sent again begins anew."""
        if request in self._inflight:
            self.on_abandoned(request, now)
        size = max(1.0, tokens)
        flight = self._inflight[request] = _TrackedPrompt(now, size, min(max(0.0, cached), size))
        self._prefilling[request] = flight
        self._prefilling_tokens += flight.tokens

    def on_peer_dispatch(self, now: float, seconds: float) -> None:
        """Another gateway has sent a prompt here, whose prefill takes ``seconds`` at most; nothing that it is beside is measured."""
        self._busy_until = max(self._busy_until, now) + seconds
        if self._run is not None and self._prefilling:  # else nobody goes on with it
            self._run.is_blurred = True
        for flight in self._inflight.values():
            flight.is_blurred = True

    def on_first_token(self, request: str, now: float) -> None:
        """The prompt's prefill is over."""
        flight = self._inflight.get(request)
        if flight is None or flight.first_token_at is not None:
            return
        self._advance(now)
        passed = self._finish_unseen_prefills(flight, now)
        run = self._run
        start = max(flight.dispatched_at, self._last_first_token_at)
        together = now - self._last_first_token_at <= SAME_STEP_SECONDS
        if together and run is not None:
            run.prompts.append(flight)  # even a full run takes what came of its last step
        else:
            if run is not None and (flight.dispatched_at > run.end or len(run.prompts) >= MAX_RUN_PROMPTS):
                run = self._run = None
            if run is None:
                run = self._run = _PrefillRun(start, now, self._area, self._token_area, [])
                run.area -= self._decoding * max(0.0, now - start)  # what decoded while it ran, as far as is known
                run.token_area -= self._resident_tokens() * max(0.0, now - start)
                run.began_mid_step = self._decoding > 0 and flight.dispatched_at > self._last_first_token_at
            run.prompts.append(flight)
        run.is_blurred = run.is_blurred or passed or run.start < self._busy_until
        steps = self._prefill_steps(flight)
        run.steps += steps
        run.end, run.area_end, run.token_area_end = now, self._area, self._token_area
        run.unreported += 1
        flight.run, flight.first_token_at = run, now
        self._total_work.add(ComputedWork.of_prompt(flight.tokens, flight.cached))
        self._total_work.steps += steps
        flight.work_before = self._total_work.minus(ComputedWork())
        flight.area, flight.token_area = self._area, self._token_area
        run.peak_tokens = max(run.peak_tokens, self._resident_tokens() + self._prefilling_tokens)
        run.peak_sequences = max(run.peak_sequences, self._decoding + len(self._prefilling))
        self._last_first_token_at = now
        self._begin_decoding(request, flight)

    def on_finish(
        self, request: str, now: float, *, cached_tokens: float | None = None, output_tokens: float | None = None
    ) -> list[Observation]:
        """The answer is complete: the spans that are complete with it, none while others of its run are still to be told."""
        flight = self._inflight.get(request)
        if flight is None or flight.first_token_at is None or flight.is_unseen:
            self.on_abandoned(request, now)
            return []
        self._advance(now)
        found: list[Observation] = []
        if (
            flight.work_before is not None
            and not flight.is_blurred
            and output_tokens is not None
            and output_tokens >= 8
        ):
            seconds = max(1e-9, now - flight.first_token_at)
            step = seconds / (output_tokens - 1)
            self._step_seconds = step if self._step_seconds is None else 0.9 * self._step_seconds + 0.1 * step
            found.append(
                Observation(
                    seconds,
                    self._total_work.minus(flight.work_before),
                    (self._area - flight.area) / seconds,
                    (self._token_area - flight.token_area) / seconds,
                    steps=output_tokens - 1,
                )
            )
        if cached_tokens is not None:
            self._correct_cached(flight, min(max(0.0, float(cached_tokens)), flight.tokens))
        run = flight.run
        self.on_abandoned(request, now)
        if run is not None and not run.unreported:
            span = _run_observation(run)
            if span is not None:
                found.append(span)
        return found

    def on_abandoned(self, request: str, now: float) -> None:
        """Away without an answer worth measuring: failed, or its client left."""
        flight = self._inflight.pop(request, None)
        if flight is None:
            return
        self._advance(now)
        if flight.first_token_at is None:
            del self._prefilling[request]
            self._prefilling_tokens -= flight.tokens
            return
        self._decoding -= 1
        self._decoding_prompt_tokens -= flight.tokens
        self._steps_before_sum -= flight.steps_before
        run = flight.run
        if run is not None:
            run.unreported -= 1
            if not run.unreported and run is self._run:
                self._run = None  # whoever comes next begins another

    def _finish_unseen_prefills(self, flight: _TrackedPrompt, now: float) -> bool:
        """Prompts that were sent before this one have been computed by now, though nobody saw it; whether there were any."""
        passed = False
        while self._prefilling:
            request, other = next(iter(self._prefilling.items()))
            if other.dispatched_at >= flight.dispatched_at:
                break
            passed = other.is_unseen = True
            other.first_token_at = now
            self._total_work.add(ComputedWork.of_prompt(other.tokens, other.cached))
            self._total_work.steps += 1.0
            self._begin_decoding(request, other)
        return passed

    def _begin_decoding(self, request: str, flight: _TrackedPrompt) -> None:
        del self._prefilling[request]
        self._prefilling_tokens -= flight.tokens
        self._decoding += 1
        self._decoding_prompt_tokens += flight.tokens
        flight.steps_before = self._steps_done
        self._steps_before_sum += self._steps_done

    def _prefill_steps(self, flight: _TrackedPrompt) -> float:
        """How many more steps its prefill took: it begins with what room the step before had left, if it was there by then."""
        rest = max(1.0, flight.tokens - flight.cached)
        if flight.dispatched_at < self._last_first_token_at:
            used = min(rest, self._step_budget_left)
            self._step_budget_left -= used
            rest -= used
            if rest <= 0.0:
                return 0.0
        budget = max(1.0, self._step_budget - self._decoding)
        steps = float(-(-rest // budget))
        self._step_budget_left = steps * budget - rest
        return steps

    def _correct_cached(self, flight: _TrackedPrompt, cached: float) -> None:
        """The engine has told what it had; whoever decoded meanwhile was beside the true work, not what was expected of it."""
        flight.cache_reported = True
        if cached == flight.cached or flight.first_token_at is None:
            return
        off = ComputedWork.of_prompt(flight.tokens, cached).minus(ComputedWork.of_prompt(flight.tokens, flight.cached))
        flight.cached = cached
        self._total_work.add(off)
        for other in self._inflight.values():
            if (
                other.work_before is not None
                and other.first_token_at is not None
                and other.first_token_at >= flight.first_token_at
            ):
                other.work_before.add(off)

    def _resident_tokens(self) -> float:
        """Tokens that decoding reads in a step: prompts, and what was generated behind them so far."""
        return self._decoding_prompt_tokens + self._decoding * self._steps_done - self._steps_before_sum

    def _advance(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._at = max(self._at, now)
        self._area += passed * self._decoding
        before = self._resident_tokens()
        if self._step_seconds is not None:
            self._steps_done += passed / self._step_seconds
        self._token_area += passed * (before + self._resident_tokens()) / 2


def _run_observation(run: _PrefillRun) -> Observation | None:
    """The whole run as one observation; None where nothing can be said of it."""
    seconds = run.end - run.start
    if seconds <= 0.0 or run.is_blurred:
        return None
    work = ComputedWork()
    for prompt in run.prompts:
        work.add(ComputedWork.of_prompt(prompt.tokens, prompt.cached))
    work.steps = run.steps
    return Observation(
        seconds,
        work,
        (run.area_end - run.area) / seconds,
        (run.token_area_end - run.token_area) / seconds,
        is_cache_assumed=not all(prompt.cache_reported for prompt in run.prompts),
        began_mid_step=run.began_mid_step,
        peak_tokens=run.peak_tokens,
        peak_sequences=run.peak_sequences,
    )
