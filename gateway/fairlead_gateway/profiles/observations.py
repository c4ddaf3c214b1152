"""Turns dispatches, first tokens and ends of requests into observations of an engine's time.

An observation is a span of time with all the work that the engine did in it.

Prefill: an engine prefills in order. So a prefill begins at the dispatch, or at the first token of
the prompt before it, whichever is later. Two effects blur this.

- A step's budget takes the end of one prompt and the start of the next. So single prompts are
  measured too long and too short in turn.
- Prompts that end in one step show their first tokens at the same time.

Both cancel in a *run*: consecutive prompts without an idle moment of the engine. A run is one
observation, from the start of its first prompt to the first token of its last.

Decode: an observation is a whole answer, from its first token to its last. It has the number of
steps, the seconds, and the prompt tokens that were computed meanwhile for other requests.

Limits: an answer that is not streamed has no first token. When a later prompt has its own, the
earlier prefill must be over, and the request counts as decoding from then on. Only the dispatch of
a peer's prompt is known, so work that overlaps with it is not measured.

The engine reports with the end of the answer how many prompt tokens were cached, so observations
are complete then. If it reports nothing, the estimate of the dispatch stands, and the observation
is marked as assumed.
"""

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

MAX_RUN_PROMPTS: Final = 6
"""The most prompts in a run; a cut blurs one chunk among so many prompts."""
SAME_STEP_SECONDS: Final = 0.0005
"""First tokens that are closer than this came from the same step."""


NOTHING_LOADED: Final = (0.0, 0.0, 0.0)


@dataclass(slots=True)
class ComputedWork:
    """The work of a span.

    computed: prompt tokens that were computed.
    attention: pairs of tokens in attention.
    cached: prompt tokens that were in the cache.
    cpu, disk, store: those of them that were loaded from CPU memory, disk and shared store.
    steps: steps that computed prompt tokens.
    """

    computed: float = 0.0
    attention: float = 0.0
    cached: float = 0.0
    steps: float = 0.0
    cpu: float = 0.0
    disk: float = 0.0
    store: float = 0.0

    def add(self, other: "ComputedWork", sign: float = 1.0) -> None:
        """Adds the work of another span, or takes it away with the sign -1."""
        self.computed += sign * other.computed
        self.attention += sign * other.attention
        self.cached += sign * other.cached
        self.steps += sign * other.steps
        self.cpu += sign * other.cpu
        self.disk += sign * other.disk
        self.store += sign * other.store

    def minus(self, before: "ComputedWork") -> "ComputedWork":
        """Returns the work that was done after `before`."""
        work = replace(self)
        work.add(before, -1.0)
        return work

    @classmethod
    def of_prompt(
        cls, tokens: float, cached: float, loaded: tuple[float, float, float] = NOTHING_LOADED, expected: float = 0.0
    ) -> "ComputedWork":
        """Returns the work of a prompt of which `cached` tokens are in the cache.

        loaded: of the `expected` cached tokens, those in CPU memory, on disk and in the shared
            store. Where fewer are cached, the slowest memory lacks them.
        """
        new = max(1.0, tokens - cached)
        work = cls(new, new * (tokens - new / 2), tokens - new)
        if loaded is not NOTHING_LOADED:
            left = max(0.0, work.cached - (expected - sum(loaded)))
            work.cpu, work.disk = min(left, loaded[0]), min(max(0.0, left - loaded[0]), loaded[1])
            work.store = min(max(0.0, left - loaded[0] - loaded[1]), loaded[2])
        return work


class PrecedingStep(NamedTuple):
    """The step before a prompt's first one, in which the prompts ahead of it ended.

    gap_seconds: from the dispatch of the prompt to the end of the step.
    computed, attention: work of the prompts ahead in the step.
    sequences: number of sequences that decoded in it.
    """

    gap_seconds: float
    computed: float
    attention: float
    sequences: int


@dataclass(frozen=True, slots=True)
class Observation:
    """A span of an engine's time and its work.

    sequences: mean number of sequences that decode meanwhile.
    resident: mean number of their tokens in the KV cache.
    steps: output tokens of an answer without the first; None for a run of prompts.
    is_cache_assumed: the engine did not report its cached tokens.
    began_mid_step: a decode step ran at the start and had to end first.
    preceding: the steps before the first ones of prompts that were dispatched before those ended.
    peak_tokens: most tokens at one time, those of queued requests included.
    peak_sequences: most sequences at one time, queued ones included.
    """

    seconds: float
    work: ComputedWork
    sequences: float
    resident: float
    steps: float | None = None
    is_cache_assumed: bool = False
    began_mid_step: bool = False
    preceding: tuple[PrecedingStep, ...] = ()
    peak_tokens: float = 0.0
    peak_sequences: float = 0.0


@dataclass(slots=True)
class _TrackedPrompt:
    """A request that an engine has not finished."""

    dispatched_at: float
    tokens: float
    cached: float
    loaded: tuple[float, float, float] = NOTHING_LOADED
    expected: float = 0.0  # cached tokens at the dispatch, of which some are loaded
    first_token_at: float | None = None
    run: "_PrefillRun | None" = None
    cache_reported: bool = False
    work_before: ComputedWork | None = None  # of the engine, until its first token
    area: float = 0.0  # integral of decoding sequences until then; below, of resident tokens
    token_area: float = 0.0
    steps_before: float = 0.0
    is_unseen: bool = False  # its first token was not seen
    is_blurred: bool = False  # it overlapped with a peer's prompt
    is_mid_step: bool = False  # others decoded at the dispatch

    def work(self) -> ComputedWork:
        """Returns the work that it takes by what is known of its cached tokens."""
        return ComputedWork.of_prompt(self.tokens, self.cached, self.loaded, self.expected)


@dataclass(slots=True, eq=False)
class _PrefillRun:
    """Consecutive prompts without an idle moment of the engine."""

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
    # for `PrecedingStep`: the gap, the prompts ahead, and the number of sequences
    preceding: list[tuple[float, tuple[_TrackedPrompt, ...], int]] = field(default_factory=list)
    is_blurred: bool = False  # it overlapped with work that is not measured
    unreported: int = 0  # prompts whose cached tokens are not reported yet


class EngineObserver:
    """The measurement of one instance from the events of its requests, which must come in order of
    time.

    step_tokens: the token budget of a step.
    """

    def __init__(self, step_tokens: int) -> None:
        self._step_budget = max(1.0, float(step_tokens))
        self._step_budget_left = 0.0  # of the step with the last first token
        self._inflight: dict[str, _TrackedPrompt] = {}
        self._prefilling: OrderedDict[str, _TrackedPrompt] = OrderedDict()  # in order of dispatch
        self._busy_until = float("-inf")  # with prompts of peers
        self._prefilling_tokens = 0.0
        self._decoding = 0
        self._decoding_prompt_tokens = 0.0  # prompt tokens of requests that decode
        self._steps_done = self._steps_before_sum = (
            0.0  # steps so far; the sum of `steps_before` of requests that decode
        )
        self._step_seconds: float | None = None
        self._at = 0.0
        self._area = self._token_area = 0.0
        self._total_work = ComputedWork()
        self._run: _PrefillRun | None = None
        self._last_step_prompts: tuple[_TrackedPrompt, ...] = ()  # whose first tokens came last
        self._last_step_sequences = 0
        self._last_first_token_at = float("-inf")

    def on_dispatch(
        self,
        request: str,
        now: float,
        tokens: float,
        cached: float,
        loaded: tuple[float, float, float] | None = None,
    ) -> None:
        """Records a dispatch. A second dispatch of a request replaces the first.

        cached: prompt tokens that the gateway expects in the instance's cache.
        loaded: those of them that it expects in CPU memory, on disk and in a shared store.
        """
        if request in self._inflight:
            self.on_abandoned(request, now)
        size = max(1.0, tokens)
        known = min(max(0.0, cached), size)
        prompt = self._inflight[request] = _TrackedPrompt(now, size, known, loaded or NOTHING_LOADED, known)
        prompt.is_mid_step = self._decoding > 0
        self._prefilling[request] = prompt
        self._prefilling_tokens += prompt.tokens

    def on_peer_dispatch(self, now: float, seconds: float) -> None:
        """Records a peer's dispatch. Work that overlaps with it is not measured.

        seconds: an upper bound of its prefill time.
        """
        self._busy_until = max(self._busy_until, now) + seconds
        if self._run is not None and self._prefilling:  # else no prompt joins the run
            self._run.is_blurred = True
        for prompt in self._inflight.values():
            prompt.is_blurred = True

    def on_first_token(self, request: str, now: float) -> None:
        """Records the first token of a request: its prefill is over."""
        prompt = self._inflight.get(request)
        if prompt is None or prompt.first_token_at is not None:
            return
        self._advance(now)
        passed = self._finish_unseen_prefills(prompt, now)
        run = self._run
        start = max(prompt.dispatched_at, self._last_first_token_at)
        is_same_step = now - self._last_first_token_at <= SAME_STEP_SECONDS
        if is_same_step and run is not None:
            run.prompts.append(prompt)  # even a full run takes prompts of its last step
        else:
            if run is not None and (prompt.dispatched_at > run.end or len(run.prompts) >= MAX_RUN_PROMPTS):
                run = self._run = None
            if run is None:
                run = self._run = _PrefillRun(start, now, self._area, self._token_area, [])
                run.area -= self._decoding * max(0.0, now - start)  # so that decoding since `start` counts
                run.token_area -= self._resident_tokens() * max(0.0, now - start)
                run.began_mid_step = prompt.is_mid_step and prompt.dispatched_at > self._last_first_token_at
            run.prompts.append(prompt)
            gap = self._last_first_token_at - prompt.dispatched_at
            if gap > 0.0:
                run.preceding.append((gap, self._last_step_prompts, self._last_step_sequences))
        run.is_blurred = run.is_blurred or passed or run.start < self._busy_until
        steps = self._prefill_steps(prompt, is_same_step)
        run.steps += steps
        run.end, run.area_end, run.token_area_end = now, self._area, self._token_area
        run.unreported += 1
        prompt.run, prompt.first_token_at = run, now
        self._total_work.add(prompt.work())
        self._total_work.steps += steps
        prompt.work_before = self._total_work.minus(ComputedWork())
        prompt.area, prompt.token_area = self._area, self._token_area
        run.peak_tokens = max(run.peak_tokens, self._resident_tokens() + self._prefilling_tokens)
        run.peak_sequences = max(run.peak_sequences, self._decoding + len(self._prefilling))
        self._last_first_token_at = now
        self._last_step_prompts = (*self._last_step_prompts, prompt) if is_same_step else (prompt,)
        if not is_same_step:
            self._last_step_sequences = self._decoding
        self._begin_decoding(request, prompt)

    def on_finish(
        self, request: str, now: float, *, cached_tokens: float | None = None, output_tokens: float | None = None
    ) -> list[Observation]:
        """Records the end of a complete answer. Returns the observations that it completes.

        The observation of a run comes with the last of its requests that ends.
        """
        prompt = self._inflight.get(request)
        if prompt is None or prompt.first_token_at is None or prompt.is_unseen:
            self.on_abandoned(request, now)
            return []
        self._advance(now)
        observations: list[Observation] = []
        if (
            prompt.work_before is not None
            and not prompt.is_blurred
            and output_tokens is not None
            and output_tokens >= 8
        ):
            seconds = max(1e-9, now - prompt.first_token_at)
            step = seconds / (output_tokens - 1)
            self._step_seconds = step if self._step_seconds is None else 0.9 * self._step_seconds + 0.1 * step
            observations.append(
                Observation(
                    seconds,
                    self._total_work.minus(prompt.work_before),
                    (self._area - prompt.area) / seconds,
                    (self._token_area - prompt.token_area) / seconds,
                    steps=output_tokens - 1,
                )
            )
        if cached_tokens is not None:
            self._correct_cached(prompt, min(max(0.0, float(cached_tokens)), prompt.tokens))
        run = prompt.run
        self.on_abandoned(request, now)
        if run is not None and not run.unreported:
            observation = _run_observation(run, self._step_budget)
            if observation is not None:
                observations.append(observation)
        return observations

    def on_abandoned(self, request: str, now: float) -> None:
        """Removes a request without measuring it, as after a failure or a client disconnect."""
        prompt = self._inflight.pop(request, None)
        if prompt is None:
            return
        # Otherwise a later run that has this prompt in `preceding` keeps all runs before it.
        run, prompt.run = prompt.run, None
        self._advance(now)
        if prompt.first_token_at is None:
            del self._prefilling[request]
            self._prefilling_tokens -= prompt.tokens
            return
        self._decoding -= 1
        self._decoding_prompt_tokens -= prompt.tokens
        self._steps_before_sum -= prompt.steps_before
        if run is not None:
            run.unreported -= 1
            if not run.unreported and run is self._run:
                self._run = None  # the next prompt begins another run

    def on_unmeasured(self, request: str, now: float) -> None:
        """Removes a request whose tokens say nothing of a step, and the run that has its prompt.

        Why: several answers share each step. Reasoning that no event shows comes before the first
        token, which then looks like a slow prefill.
        """
        prompt = self._inflight.get(request)
        if prompt is not None and prompt.run is not None:
            prompt.run.is_blurred = True
        self.on_abandoned(request, now)

    def _finish_unseen_prefills(self, prompt: _TrackedPrompt, now: float) -> bool:
        """Ends the prefill of prompts dispatched earlier whose first token was not reported.

        Returns whether there were any.
        """
        passed = False
        while self._prefilling:
            request, other = next(iter(self._prefilling.items()))
            if other.dispatched_at >= prompt.dispatched_at:
                break
            passed = other.is_unseen = True
            other.first_token_at = now
            self._total_work.add(other.work())
            self._total_work.steps += 1.0
            self._begin_decoding(request, other)
        return passed

    def _begin_decoding(self, request: str, prompt: _TrackedPrompt) -> None:
        del self._prefilling[request]
        self._prefilling_tokens -= prompt.tokens
        self._decoding += 1
        self._decoding_prompt_tokens += prompt.tokens
        prompt.steps_before = self._steps_done
        self._steps_before_sum += self._steps_done

    def _prefill_steps(self, prompt: _TrackedPrompt, is_same_step: bool) -> float:
        """Returns the number of further steps of a prefill.

        It begins with the budget that the previous step had left, if the prompt was there by then.
        It was not if it would have ended in that step.
        """
        rest = max(1.0, prompt.tokens - prompt.cached)
        if is_same_step or (prompt.dispatched_at < self._last_first_token_at and rest > self._step_budget_left):
            used = min(rest, self._step_budget_left)
            self._step_budget_left -= used
            rest -= used
            if rest <= 0.0:
                return 0.0
        budget = max(1.0, self._step_budget - self._decoding)
        steps = float(-(-rest // budget))
        self._step_budget_left = steps * budget - rest
        return steps

    def _correct_cached(self, prompt: _TrackedPrompt, cached: float) -> None:
        """Corrects the work of a prompt, also for the requests that decoded meanwhile."""
        prompt.cache_reported = True
        if cached == prompt.cached or prompt.first_token_at is None:
            return
        before = prompt.work()
        prompt.cached = cached
        difference = prompt.work().minus(before)
        self._total_work.add(difference)
        for other in self._inflight.values():
            if (
                other.work_before is not None
                and other.first_token_at is not None
                and other.first_token_at >= prompt.first_token_at
            ):
                other.work_before.add(difference)

    def _resident_tokens(self) -> float:
        return self._decoding_prompt_tokens + self._decoding * self._steps_done - self._steps_before_sum

    def _advance(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._at = max(self._at, now)
        self._area += passed * self._decoding
        before = self._resident_tokens()
        if self._step_seconds is not None:
            self._steps_done += passed / self._step_seconds
        self._token_area += passed * (before + self._resident_tokens()) / 2


def _last_chunk(prompt: _TrackedPrompt, budget: float) -> tuple[float, float]:
    tokens = (prompt.work().computed - 1.0) % budget + 1.0
    return tokens, tokens * (prompt.tokens - tokens / 2)


def _run_observation(run: _PrefillRun, step_budget: float) -> Observation | None:
    """Returns the run as one observation; None if it cannot be measured."""
    seconds = run.end - run.start
    if seconds <= 0.0 or run.is_blurred:
        return None
    work = ComputedWork()
    for prompt in run.prompts:
        work.add(prompt.work())
    work.steps = run.steps
    preceding = []
    for gap, prompts, sequences in run.preceding:
        chunks = [_last_chunk(prompt, step_budget) for prompt in prompts]
        computed, attention = sum([tokens for tokens, _ in chunks]), sum([pairs for _, pairs in chunks])
        preceding.append(PrecedingStep(gap, computed, attention, sequences))
    return Observation(
        seconds,
        work,
        (run.area_end - run.area) / seconds,
        (run.token_area_end - run.token_area) / seconds,
        is_cache_assumed=not all(prompt.cache_reported for prompt in run.prompts),
        began_mid_step=run.began_mid_step,
        preceding=tuple(preceding),
        peak_tokens=run.peak_tokens,
        peak_sequences=run.peak_sequences,
    )
