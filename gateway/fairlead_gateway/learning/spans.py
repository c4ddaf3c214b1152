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

RUN_PROMPTS: Final = 6
"""A run that goes on is cut after so many prompts: what the cut blurs is one chunk among that many prompts."""
TOGETHER_SECONDS: Final = 0.0005
"""First tokens so near to one another came of one step."""


@dataclass(slots=True)
class Work:
    """What was computed: prompt tokens, pairs of tokens in attention, tokens found in the cache; and in how many steps."""

    computed: float = 0.0
    attention: float = 0.0
    hits: float = 0.0
    steps: float = 0.0

    def add(self, other: "Work") -> None:
        """Both together."""
        self.computed += other.computed
        self.attention += other.attention
        self.hits += other.hits
        self.steps += other.steps

    def since(self, before: "Work") -> "Work":
        """What came after ``before``."""
        return Work(
            self.computed - before.computed,
            self.attention - before.attention,
            self.hits - before.hits,
            self.steps - before.steps,
        )

    @classmethod
    def of_prompt(cls, tokens: float, cached: float) -> "Work":
        """A prompt of ``tokens`` of which ``cached`` are found."""
        new = max(1.0, tokens - cached)
        return cls(new, new * (tokens - new / 2), tokens - new)


@dataclass(frozen=True, slots=True)
class Span:
    """``seconds`` of an engine in which ``work`` was done beside ``sequences`` that decode, holding ``resident`` tokens on average.

    ``steps`` is how many steps it was where that is known (an answer's tokens), None for runs of prompts. ``assumed``: an engine
    did not tell what it had cached. ``waited``: it began while a step of decoding ran, which had to end first. ``most_tokens`` and
    ``most_sequences`` were there at most, those that waited included.
    """

    seconds: float
    work: Work
    sequences: float
    resident: float
    steps: float | None = None
    assumed: bool = False
    waited: bool = False
    most_tokens: float = 0.0
    most_sequences: float = 0.0


@dataclass(slots=True)
class _Prompt:
    """A request on its way through the engine."""

    at: float
    tokens: float
    cached: float
    first: float | None = None
    run: "_Run | None" = None
    told: bool = False
    before: Work | None = None  # all the work of the engine when its first token came
    area: float = 0.0  # the integrals of decoding sequences and resident tokens at that moment
    token_area: float = 0.0
    grown: float = 0.0
    silent: bool = False  # nobody saw its first token
    blurred: bool = False  # others' prompts were computed while it decoded


@dataclass(slots=True, eq=False)
class _Run:
    """Prompts that followed one another without a pause."""

    start: float
    end: float
    area: float
    token_area: float
    prompts: list[_Prompt]
    area_end: float = 0.0
    token_area_end: float = 0.0
    steps: float = 0.0
    waited: bool = False
    most_tokens: float = 0.0
    most_sequences: int = 0
    blurred: bool = False  # others' work was in it
    open: int = 0  # prompts whose cached tokens are still to be told


class EngineWatch:
    """One instance as a gateway sees it. Feed it in order of time; it keeps what is in flight and one open run.
    ``step_tokens`` is the budget of a step."""

    def __init__(self, step_tokens: int) -> None:
        self._budget = max(1.0, float(step_tokens))
        self._room = 0.0  # what the step that gave the last first token had left for the next prompt
        self._flights: dict[str, _Prompt] = {}
        self._waiting: OrderedDict[str, _Prompt] = OrderedDict()  # waiting, in the order in which they were sent
        self._busy_until = float("-inf")  # by others' prompts
        self._waiting_tokens = 0.0
        self._decoding = 0
        self._prompts = 0.0  # tokens of prompts whose answers are under way
        self._grown = self._grown_before = 0.0  # steps so far, and the sum over answers under way of those before them
        self._step_seconds: float | None = None
        self._at = 0.0
        self._area = self._token_area = 0.0
        self._done = Work()
        self._run: _Run | None = None
        self._last_first = float("-inf")

    def dispatched(self, request: str, now: float, tokens: float, cached: float) -> None:
        """A prompt was sent; ``cached`` of its tokens should be there. A request sent again begins anew."""
        if request in self._flights:
            self.ended(request, now)
        size = max(1.0, tokens)
        flight = self._flights[request] = _Prompt(now, size, min(max(0.0, cached), size))
        self._waiting[request] = flight
        self._waiting_tokens += flight.tokens

    def elsewhere(self, now: float, seconds: float) -> None:
        """Another gateway has sent a prompt here, whose prefill takes ``seconds`` at most; nothing that it is beside is measured."""
        self._busy_until = max(self._busy_until, now) + seconds
        if self._run is not None and self._waiting:  # else nobody goes on with it
            self._run.blurred = True
        for flight in self._flights.values():
            flight.blurred = True

    def first_token(self, request: str, now: float) -> None:
        """The prompt's prefill is over."""
        flight = self._flights.get(request)
        if flight is None or flight.first is not None:
            return
        self._advance(now)
        passed = self._pass_silent(flight, now)
        run = self._run
        start = max(flight.at, self._last_first)
        together = now - self._last_first <= TOGETHER_SECONDS
        if together and run is not None:
            run.prompts.append(flight)  # even a full run takes what came of its last step
        else:
            if run is not None and (flight.at > run.end or len(run.prompts) >= RUN_PROMPTS):
                run = self._run = None
            if run is None:
                run = self._run = _Run(start, now, self._area, self._token_area, [])
                run.area -= self._decoding * max(0.0, now - start)  # what decoded while it ran, as far as is known
                run.token_area -= self._resident() * max(0.0, now - start)
                run.waited = self._decoding > 0 and flight.at > self._last_first
            run.prompts.append(flight)
        run.blurred = run.blurred or passed or run.start < self._busy_until
        steps = self._steps(flight)
        run.steps += steps
        run.end, run.area_end, run.token_area_end = now, self._area, self._token_area
        run.open += 1
        flight.run, flight.first = run, now
        self._done.add(Work.of_prompt(flight.tokens, flight.cached))
        self._done.steps += steps
        flight.before = self._done.since(Work())
        flight.area, flight.token_area = self._area, self._token_area
        run.most_tokens = max(run.most_tokens, self._resident() + self._waiting_tokens)
        run.most_sequences = max(run.most_sequences, self._decoding + len(self._waiting))
        self._last_first = now
        self._begin_decoding(request, flight)

    def finished(
        self, request: str, now: float, *, cached_tokens: float | None = None, output_tokens: float | None = None
    ) -> list[Span]:
        """The answer is complete: the spans that are complete with it, none while others of its run are still to be told."""
        flight = self._flights.get(request)
        if flight is None or flight.first is None or flight.silent:
            self.ended(request, now)
            return []
        self._advance(now)
        found: list[Span] = []
        if flight.before is not None and not flight.blurred and output_tokens is not None and output_tokens >= 8:
            seconds = max(1e-9, now - flight.first)
            step = seconds / (output_tokens - 1)
            self._step_seconds = step if self._step_seconds is None else 0.9 * self._step_seconds + 0.1 * step
            found.append(
                Span(
                    seconds,
                    self._done.since(flight.before),
                    (self._area - flight.area) / seconds,
                    (self._token_area - flight.token_area) / seconds,
                    steps=output_tokens - 1,
                )
            )
        if cached_tokens is not None:
            self._correct(flight, min(max(0.0, float(cached_tokens)), flight.tokens))
        run = flight.run
        self.ended(request, now)
        if run is not None and not run.open:
            span = _span(run)
            if span is not None:
                found.append(span)
        return found

    def ended(self, request: str, now: float) -> None:
        """Away without an answer worth measuring: failed, or its client left."""
        flight = self._flights.pop(request, None)
        if flight is None:
            return
        self._advance(now)
        if flight.first is None:
            del self._waiting[request]
            self._waiting_tokens -= flight.tokens
            return
        self._decoding -= 1
        self._prompts -= flight.tokens
        self._grown_before -= flight.grown
        run = flight.run
        if run is not None:
            run.open -= 1
            if not run.open and run is self._run:
                self._run = None  # whoever comes next begins another

    def _pass_silent(self, flight: _Prompt, now: float) -> bool:
        """Prompts that were sent before this one have been computed by now, though nobody saw it; whether there were any."""
        passed = False
        while self._waiting:
            request, other = next(iter(self._waiting.items()))
            if other.at >= flight.at:
                break
            passed = other.silent = True
            other.first = now
            self._done.add(Work.of_prompt(other.tokens, other.cached))
            self._done.steps += 1.0
            self._begin_decoding(request, other)
        return passed

    def _begin_decoding(self, request: str, flight: _Prompt) -> None:
        del self._waiting[request]
        self._waiting_tokens -= flight.tokens
        self._decoding += 1
        self._prompts += flight.tokens
        flight.grown = self._grown
        self._grown_before += self._grown

    def _steps(self, flight: _Prompt) -> float:
        """How many more steps its prefill took: it begins with what room the step before had left, if it was there by then."""
        rest = max(1.0, flight.tokens - flight.cached)
        if flight.at < self._last_first:
            used = min(rest, self._room)
            self._room -= used
            rest -= used
            if rest <= 0.0:
                return 0.0
        budget = max(1.0, self._budget - self._decoding)
        steps = float(-(-rest // budget))
        self._room = steps * budget - rest
        return steps

    def _correct(self, flight: _Prompt, cached: float) -> None:
        """The engine has told what it had; whoever decoded meanwhile was beside the true work, not what was expected of it."""
        flight.told = True
        if cached == flight.cached or flight.first is None:
            return
        off = Work.of_prompt(flight.tokens, cached).since(Work.of_prompt(flight.tokens, flight.cached))
        flight.cached = cached
        self._done.add(off)
        for other in self._flights.values():
            if other.before is not None and other.first is not None and other.first >= flight.first:
                other.before.add(off)

    def _resident(self) -> float:
        """Tokens that decoding reads in a step: prompts, and what was generated behind them so far."""
        return self._prompts + self._decoding * self._grown - self._grown_before

    def _advance(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._at = max(self._at, now)
        self._area += passed * self._decoding
        before = self._resident()
        if self._step_seconds is not None:
            self._grown += passed / self._step_seconds
        self._token_area += passed * (before + self._resident()) / 2


def _span(run: _Run) -> Span | None:
    """The whole run as one observation; None where nothing can be said of it."""
    seconds = run.end - run.start
    if seconds <= 0.0 or run.blurred:
        return None
    work = Work()
    for prompt in run.prompts:
        work.add(Work.of_prompt(prompt.tokens, prompt.cached))
    work.steps = run.steps
    return Span(
        seconds,
        work,
        (run.area_end - run.area) / seconds,
        (run.token_area_end - run.token_area) / seconds,
        assumed=not all(prompt.told for prompt in run.prompts),
        waited=run.waited,
        most_tokens=run.most_tokens,
        most_sequences=run.most_sequences,
    )
