"""An engine that goes from event to event: between two of them its batch is constant.

A phase is a run of steps with the same sequences. Its steps grow by the tokens that each of them
adds to the memory, so that the time of ``k`` steps is ``k·first + k·(k−1)/2·growth``. A phase ends
when an answer or a prompt ends, or at the next step boundary after a request arrived.

One prompt is computed at a time, first come, first served; answers go on in the same steps.
"""

import math
from bisect import bisect_left
from collections import deque
from heapq import heappop, heappush
from typing import Final

from fairlead_bench.outside_plant.scenario import EngineProfile, RequestList, Role

NO_REQUEST: Final = -1


class EngineCounters:
    """Counts since the last look, as the seam names them."""

    __slots__ = (
        "finished",
        "first",
        "gap_histogram",
        "generated",
        "generated_seconds",
        "prompt",
        "ttft_histogram",
        "ttft_sum",
    )

    def __init__(self, ttft_buckets: int, gap_buckets: int) -> None:
        self.prompt = self.generated = self.finished = self.first = 0
        self.generated_seconds = self.ttft_sum = 0.0
        self.ttft_histogram = [0] * ttft_buckets
        self.gap_histogram = [0] * gap_buckets


class Engine:
    """One engine with its queue.

    slowness: factor on the time of each step
    inflight: requests that wait or run
    outgoing: requests whose prompt is computed, of a prefill engine; the plant takes them
    prompt_rate: prompt tokens a second in this phase
    version: another for each planned end of a phase
    """

    __slots__ = (
        "_blocked",
        "_chunk_saving",
        "_counted_steps",
        "_decoding",
        "_first_step",
        "_gap_edges",
        "_growth",
        "_is_per_gap",
        "_log",
        "_phase_prompt",
        "_phase_steps",
        "_profile",
        "_prompt",
        "_prompt_left",
        "_role",
        "_steps",
        "_ttft_edges",
        "backlog_tokens",
        "counters",
        "inflight",
        "outgoing",
        "phase_end",
        "phase_start",
        "prompt_rate",
        "reserved_tokens",
        "resident_tokens",
        "slowness",
        "version",
        "waiting",
    )

    def __init__(
        self,
        profile: EngineProfile,
        role: Role,
        log: RequestList,
        edges: tuple[list[float], list[float]],
        *,
        is_per_gap: bool = False,
    ) -> None:
        self._profile, self._role, self._log = profile, role, log
        self._ttft_edges, self._gap_edges = edges
        self._is_per_gap = is_per_gap
        self.waiting: deque[int] = deque()
        self.outgoing: list[int] = []
        self.slowness = 1.0
        self.inflight = 0
        self._prompt, self._prompt_left = NO_REQUEST, 0
        self._decoding: list[tuple[int, int]] = []
        self._steps = self.resident_tokens = self.reserved_tokens = self.backlog_tokens = 0
        self._blocked = False
        self._phase_steps = self._phase_prompt = self._counted_steps = 0
        self._first_step = self._growth = self._chunk_saving = 0.0
        self.phase_start = self.prompt_rate = 0.0
        self.phase_end = math.inf
        self.version = 0
        self.counters = EngineCounters(len(self._ttft_edges) + 1, len(self._gap_edges) + 1)

    @property
    def running(self) -> int:
        return len(self._decoding) + (self._prompt != NO_REQUEST)

    @property
    def is_idle(self) -> bool:
        return self.phase_end == math.inf

    def enqueue(self, request: int, now: float) -> bool:
        """Adds a request. Returns whether the end of the phase moved, so that the caller
        plans it again."""
        self.waiting.append(request)
        self.inflight += 1
        if self._role is not Role.DECODE:
            self.backlog_tokens += self._log.prompts[request]
        if self.is_idle:
            self.begin_phase(now)
            return True
        if self._prompt != NO_REQUEST or self._blocked or len(self.waiting) > 1:
            return False
        steps = self._completed_steps(now) + 1
        if steps >= self._phase_steps:
            return False
        self._phase_steps, self._chunk_saving = steps, 0.0
        self.phase_end = self.phase_start + self._seconds_of(steps)
        self.version += 1
        return True

    def abandon(self, request: int) -> None:
        """Takes a request out whose client has gone. A prompt that is being computed goes on."""
        if request != self._prompt:
            try:
                self.waiting.remove(request)
            except ValueError:
                return
            self.inflight -= 1
            self.backlog_tokens -= 0 if self._role is Role.DECODE else self._log.prompts[request]

    def begin_phase(self, now: float) -> None:
        """Admits what fits and plans the steps until the next event."""
        profile = self._profile
        self._admit()
        count = len(self._decoding)
        self.version += 1
        self.phase_start = now
        self._counted_steps = 0
        if self._prompt == NO_REQUEST:
            if not count:
                self.phase_end, self.prompt_rate, self._phase_steps = math.inf, 0.0, 0
                return
            prompt_step, sequences = 0, count
            steps = self._decoding[0][0] - self._steps
            self._chunk_saving = 0.0
        else:
            left = self._prompt_left
            prompt_step, sequences = min(left, profile.chunk), count + 1
            steps = -(-left // prompt_step)
            self._chunk_saving = (steps * prompt_step - left) * profile.per_prompt_token * self.slowness
            if count and self._decoding[0][0] - self._steps < steps:
                steps = self._decoding[0][0] - self._steps
                self._chunk_saving = 0.0
        self._phase_prompt, self._phase_steps = prompt_step, steps
        self._growth = self.slowness * profile.per_kv_token * (count + prompt_step)
        self._first_step = self.slowness * (
            profile.base
            + profile.per_seq * sequences
            + profile.per_kv_token * self.resident_tokens
            + profile.per_prompt_token * prompt_step
        )
        seconds = self._seconds_of(steps) - self._chunk_saving
        self.phase_end = now + seconds
        self.prompt_rate = min(steps * prompt_step, self._prompt_left) / seconds if prompt_step else 0.0

    def end_phase(self) -> None:
        """Counts the phase and lets prompts and answers end that are complete. The caller begins
        the next one."""
        now, steps = self.phase_end, self._phase_steps
        self._count(steps, now - self.phase_start)
        count = len(self._decoding)
        self._steps += steps
        self.resident_tokens += steps * count
        while self._decoding and self._decoding[0][0] <= self._steps:
            self._on_answer_end(heappop(self._decoding)[1], now)
        if self._prompt != NO_REQUEST:
            tokens = min(self._prompt_left, steps * self._phase_prompt)
            self._prompt_left -= tokens
            self.resident_tokens += tokens
            self.backlog_tokens -= tokens
            if not self._prompt_left:
                self._on_prompt_end(now)

    def synchronize(self, now: float) -> None:
        """Brings the counters up to the last step before ``now``."""
        if not self.is_idle:
            steps = self._completed_steps(now)
            if steps > self._counted_steps:
                self._count(steps, self._seconds_of(steps))

    def kv_share(self, now: float) -> float:
        """Returns the share of the memory that computed tokens take."""
        steps = 0 if self.is_idle else self._completed_steps(now)
        tokens = self.resident_tokens + steps * (
            len(self._decoding) + self._phase_prompt * (self._prompt != NO_REQUEST)
        )
        return min(tokens / self._profile.kv_tokens, 1.0)

    def take_counters(self) -> EngineCounters:
        """Returns the counters and starts new ones."""
        counters = self.counters
        self.counters = EngineCounters(len(self._ttft_edges) + 1, len(self._gap_edges) + 1)
        return counters

    def requests(self) -> tuple[list[int], list[int]]:
        prompts = [self._prompt] if self._prompt != NO_REQUEST else []
        return [*prompts, *self.waiting], [request for _, request in self._decoding]

    def _admit(self) -> None:
        """Begins the prompt at the head of the queue, or on a decode engine all that fits."""
        profile, log, waiting = self._profile, self._log, self.waiting
        self._blocked = False
        while waiting and self._prompt == NO_REQUEST:
            request = waiting[0]
            reserved = self._reservation(request)
            if self.reserved_tokens + reserved > profile.kv_tokens or len(self._decoding) >= profile.max_seqs:
                self._blocked = True
                return
            waiting.popleft()
            self.reserved_tokens += reserved
            if self._role is Role.DECODE:
                self.resident_tokens += log.prompts[request]
                heappush(self._decoding, (self._steps + log.answers[request] - 1, request))
            else:
                self._prompt, self._prompt_left = request, log.prompts[request]

    def _reservation(self, request: int) -> int:
        answer = 0 if self._role is Role.PREFILL else self._log.answers[request]
        return self._log.prompts[request] + answer

    def _on_prompt_end(self, now: float) -> None:
        request, log, counters = self._prompt, self._log, self.counters
        self._prompt = NO_REQUEST
        if log.is_over[request]:
            self._release(request, log.prompts[request])
            return
        ttft = now - log.arrivals[request]
        log.first_at[request], log.ttft[request] = now, ttft
        counters.first += 1
        counters.generated += 1
        counters.ttft_sum += ttft
        counters.ttft_histogram[bisect_left(self._ttft_edges, ttft)] += 1
        if log.answers[request] <= 1:
            log.gap[request], log.is_over[request] = 0.0, True
            counters.finished += 1
            self._release(request, log.prompts[request])
        elif self._role is Role.PREFILL:
            counters.finished += 1
            self._release(request, log.prompts[request])
            self.outgoing.append(request)
        else:
            heappush(self._decoding, (self._steps + log.answers[request] - 1, request))

    def _on_answer_end(self, request: int, now: float) -> None:
        log, counters = self._log, self.counters
        answer = log.answers[request]
        gap = (now - log.first_at[request]) / (answer - 1)
        log.gap[request], log.is_over[request] = gap, True
        counters.finished += 1
        if not self._is_per_gap:
            counters.gap_histogram[bisect_left(self._gap_edges, gap)] += 1
        self._release(request, log.prompts[request] + answer - 1)

    def _release(self, request: int, resident: int) -> None:
        self.inflight -= 1
        self.resident_tokens -= resident
        self.reserved_tokens -= self._reservation(request)

    def _count(self, steps: int, seconds: float) -> None:
        """Counts the steps of the phase up to number ``steps``, which ends ``seconds`` after its
        start."""
        before, counters, count = self._counted_steps, self.counters, len(self._decoding)
        self._counted_steps = steps
        if self._prompt != NO_REQUEST:
            per_step = self._phase_prompt
            counters.prompt += min(steps * per_step, self._prompt_left) - min(before * per_step, self._prompt_left)
        if count and steps > before:
            counters.generated += count * (steps - before)
            counters.generated_seconds += count * (seconds - self._seconds_of(before))
            if self._is_per_gap:
                self._count_gaps(before, steps, count)

    def _count_gaps(self, before: int, steps: int, count: int) -> None:
        """Counts each single gap of the steps by bucket; steps grow, so a bucket holds a run of
        them."""
        histogram = self.counters.gap_histogram
        done = before
        for bucket, edge in enumerate(self._gap_edges):
            fitting = int((edge - self._first_step) / self._growth) + 1 if edge >= self._first_step else 0
            upto = min(max(fitting, done), steps)
            histogram[bucket] += count * (upto - done)
            done = upto
            if done == steps:
                return
        histogram[-1] += count * (steps - done)

    def _seconds_of(self, steps: int) -> float:
        return steps * (self._first_step + 0.5 * (steps - 1) * self._growth)

    def _completed_steps(self, now: float) -> int:
        """Returns the whole steps of the phase before ``now``; the last one ends with the phase."""
        seconds = now - self.phase_start
        if seconds <= 0.0 or self._phase_steps <= 1:
            return 0
        middle = self._first_step - 0.5 * self._growth
        steps = 2.0 * seconds / (middle + math.sqrt(middle * middle + 2.0 * self._growth * seconds))
        return min(int(steps + 1e-9), self._phase_steps - 1)
