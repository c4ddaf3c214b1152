"""One replica as the autoscaler's plant needs it: every step's time exact, every token counted, none of them touched.

A token-level engine (``fairlead_sim.engine.scheduler``) visits each running sequence in each step. For a day of a
million requests that is two
hundred million visits, and what a controller can see of them is sums. The sums have a shorter way, because between two changes
of the batch all sequences do the same thing:

* A sequence that joins the decode batch at the end of step number ``k`` and still owes ``o - 1`` tokens ends with step
  ``k + o - 1``. So a heap of step numbers says who ends when, and nobody's progress is kept.
* While no prompt is computed, step ``j`` of a stretch with ``n`` sequences and ``r`` resident KV tokens takes
  ``fixed(n) + c·(r + j·n)``, and ``k`` of them take ``k·first + c·n·k·(k - 1)/2``. A stretch runs to the next end, or to the first
  step boundary at or after the moment the caller asks for (the root of that quadratic), in one go.
* Steps that compute prompts are taken one at a time: about three a prompt.

Prompts, the token budget, the order of admission and the memory that is set aside for a prompt and its whole answer are those of
``fairlead_sim.engine.scheduler`` with nothing cached, so that both give the same first and last tokens but for the
floats' last digits; the
tests run both in one plant and compare request by request. What is left out: prefix caches, preemption (impossible when a whole
answer is set aside), priorities.
"""

from collections import deque
from heapq import heappop, heappush
from math import ceil, sqrt

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role
from fairlead_sim.autoscaling.plant_engine import BLOCK_TOKENS, PlantEngine, StepTotals
from fairlead_sim.autoscaling.request_table import RequestTable

_REQUEST_BITS = 24
_REQUEST_MASK = (1 << _REQUEST_BITS) - 1
_NO_REQUEST = -1


class AggregatedEngine(PlantEngine):
    """The short way, see above."""

    def __init__(self, profile: EngineProfile, role: Role, requests: RequestTable, totals: StepTotals) -> None:
        super().__init__(profile, role, requests, totals)
        self._steps = 0
        self._batch = 0  # sequences that decode
        self._resident = 0  # KV tokens that the next decode step reads
        self._free_blocks = profile.kv_tokens // BLOCK_TOKENS
        self._max_batch = max(1, min(profile.max_sequences, profile.step_tokens))
        self._ends: list[int] = []  # heap of (step number << 24 | request)
        self._queue: deque[int] = deque()
        self._queued_tokens = 0  # prompt tokens of the queue, all of them
        self._partial_prompt = _NO_REQUEST  # the prompt that did not fit the last step's budget
        self._partial_prompt_left = 0

    def add(self, request: int, now: float) -> None:
        if not self._batch and self._partial_prompt < 0 and not self._queue:
            self.next_step_at = max(self.next_step_at, now)
        self.on_routed(request)
        self._queue.append(request)
        self._queued_tokens += self.requests.prompt[request]

    def advance(self, until: float) -> None:
        while self.next_step_at < until:
            if (self._partial_prompt >= 0 or self._queue) and self._prompt_step():
                continue
            if not self._batch:
                return
            self._decode(until)

    def drop_abandoned(self, now: float) -> None:
        queue, book = self._queue, self.requests
        while queue and book.has_given_up(queue[0], now):
            self._drop_head()

    def evict(self) -> list[int]:
        requests = [code & _REQUEST_MASK for code in self._ends]
        if self._partial_prompt >= 0:
            requests.append(self._partial_prompt)
        requests.extend(self._queue)
        self._queue.clear()
        self._ends = []
        self._queued_tokens = self._batch = self._resident = self._partial_prompt_left = 0
        self.backlog_seconds = self.inflight_tokens = 0.0
        self._partial_prompt = _NO_REQUEST
        self._free_blocks = self.profile.kv_tokens // BLOCK_TOKENS
        return sorted(requests)

    def running(self) -> int:
        return self._batch + (self._partial_prompt >= 0)

    def waiting(self) -> int:
        return len(self._queue)

    def kv_share(self) -> float:
        computed = (
            0 if self._partial_prompt < 0 else self.requests.prompt[self._partial_prompt] - self._partial_prompt_left
        )
        return min(1.0, (self._resident + computed) / self.profile.kv_tokens)

    def load_tokens(self) -> int:
        in_prompt = (
            0 if self._partial_prompt < 0 else self.requests.prompt[self._partial_prompt] + self._partial_prompt_left
        )
        return self._resident + 2 * self._queued_tokens + in_prompt

    def _drop_head(self) -> None:
        """The queue's head has gone."""
        request = self._queue.popleft()
        self.on_client_gone(request)
        self._queued_tokens -= self.requests.prompt[request]
        self.requests.abandoned += 1

    def _prompt_step(self) -> bool:
        """One step that computes prompts; False when none can be admitted now."""
        book, profile, queue = self.requests, self.profile, self._queue
        budget = profile.step_tokens - self._batch
        computed, chunks, attention = 0, 0, 0.0
        joined: list[int] = []
        request = self._partial_prompt
        if request >= 0:
            if book.has_given_up(request, self.next_step_at):
                self._free_blocks += self.blocks_needed(request)
                self._partial_prompt, self._partial_prompt_left = _NO_REQUEST, 0
                self.on_client_gone(request)
                book.abandoned += 1
            else:
                size = min(budget, self._partial_prompt_left)
                done = book.prompt[request] - self._partial_prompt_left + size
                attention += size * (done - size / 2)
                budget -= size
                computed += size
                chunks += 1
                self._partial_prompt_left -= size
                if not self._partial_prompt_left:
                    joined.append(request)
                    self._partial_prompt = _NO_REQUEST
        while budget > 0 and queue:
            request = queue[0]
            if book.has_given_up(request, self.next_step_at):
                self._drop_head()
                continue
            need = self.blocks_needed(request)
            if self._batch + len(joined) >= self._max_batch or need > self._free_blocks:
                break
            queue.popleft()
            self._queued_tokens -= book.prompt[request]
            self._free_blocks -= need
            whole = self.prompt_tokens_to_compute(request)
            size = min(budget, whole)
            attention += size * (book.prompt[request] - whole + size / 2)
            budget -= size
            computed += size
            chunks += 1
            if size == whole:
                joined.append(request)
            else:
                self._partial_prompt, self._partial_prompt_left = request, whole - size
        if not chunks:
            return False
        # profile.step, written out: a call with keywords for each step costs as much as all the rest.
        batch = self._batch
        seconds = self.slowdown * (
            profile.step_seconds
            + max(profile.weights_seconds, profile.prefill_token_seconds * (batch + computed))
            + profile.sequence_seconds * (batch + chunks)
            + profile.resident_token_seconds * self._resident
            + profile.attention_seconds * attention
        )
        self._end_steps(1, seconds)
        for request in joined:
            self._complete_prompt(request)
        return True

    def _complete_prompt(self, request: int) -> None:
        """Its prompt is computed and its first token there."""
        self.on_first_token(request, self.next_step_at)
        tokens = self.tokens_to_generate(request)
        if tokens == 1:
            self._free_blocks += self.blocks_needed(request)
            self.on_finished(request, self.next_step_at)
            return
        heappush(self._ends, (self._steps + tokens - 1) << _REQUEST_BITS | request)
        self._batch += 1
        self._resident += self.requests.prompt[request] + 1

    def _decode(self, until: float) -> None:
        """Steps without prompts, up to the next end or the first boundary at or after ``until``."""
        profile, batch = self.profile, self._batch
        fixed = (
            profile.step_seconds
            + max(profile.weights_seconds, profile.prefill_token_seconds * batch)
            + profile.sequence_seconds * batch
        )
        first = self.slowdown * (fixed + profile.resident_token_seconds * self._resident)
        rise = self.slowdown * profile.resident_token_seconds * batch
        steps = (self._ends[0] >> _REQUEST_BITS) - self._steps
        gap = until - self.next_step_at
        if steps > 1 and (steps - 1) * (first + rise * (steps - 2) / 2) >= gap:
            steps = max(1, min(steps, _steps_until(gap, first, rise)))
        self._end_steps(steps, steps * (first + rise * (steps - 1) / 2))

    def _end_steps(self, steps: int, seconds: float) -> None:
        """So many steps of the decode batch are over."""
        batch = self._batch
        self._steps += steps
        self.next_step_at += seconds
        if not batch:
            return
        self._resident += steps * batch
        self.totals.generated_tokens += steps * batch
        self.totals.add_gaps(steps * batch, seconds / steps)
        ends, due = self._ends, (self._steps + 1) << _REQUEST_BITS
        while ends and ends[0] < due:
            request = heappop(ends) & _REQUEST_MASK
            self._batch -= 1
            self._resident -= self.requests.prompt[request] + self.tokens_to_generate(request)
            self._free_blocks += self.blocks_needed(request)
            self.on_finished(request, self.next_step_at)


def _steps_until(gap: float, first: float, rise: float) -> int:
    """The fewest steps that take at least ``gap`` seconds, the first ``first`` and each ``rise`` longer than the one before."""
    straight = first - rise / 2
    if rise * gap < 1e-9 * straight * straight:
        return ceil(gap / first)
    return ceil((sqrt(straight * straight + 2.0 * rise * gap) - straight) / rise)
