"""The engines of the plant: the interface of one replica, and two models of it.

**Token-level**: the engine of the fleet simulator, to compare the other with.

**Aggregated**: a replica in closed form, with exact step times and token counts without a visit to
each token.

Why: the token-level engine (``fairlead_sim.engine.scheduler``) visits each running sequence in each
step, 200 million visits for a day of a million requests. A controller only sees sums of them.

Between two changes of the batch all sequences do the same, so sums have a closed form:

- A sequence joins the decode batch at the end of step ``k`` and needs ``o - 1`` more tokens. It
  ends with step ``k + o - 1``. A heap of step numbers replaces the progress of each sequence.
- Without prompts, step ``j`` of a run with ``n`` sequences and ``r`` resident KV tokens takes
  ``fixed(n) + c·(r + j·n)``, and ``k`` steps take ``k·first + c·n·k·(k - 1)/2``. A run extends to
  the next end of a sequence, or to the first step boundary after the requested time: the root of
  that quadratic.
- Steps that compute prompts are taken one by one, about three per prompt.

Prompts, token budget, order of admission, steps planned ahead and reserved memory are those of the
token-level engine with an empty cache. Both give the same times of first and last tokens, up to the
last digits of the floats; tests compare them request by request. Prefix caches, preemption
(impossible with all output reserved) and priorities are left out.
"""

from abc import ABC, abstractmethod
from collections import deque
from heapq import heappop, heappush
from itertools import count
from math import ceil, sqrt

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role
from fairlead_gateway.routing.request import DEFAULT_OUTPUT_TOKENS
from fairlead_sim.autoscaling.request_table import RequestTable
from fairlead_sim.engine.scheduler import EngineCore
from fairlead_sim.engine.sequence import EngineSequence

BLOCK_TOKENS = 16

_REQUEST_BITS = 24
_REQUEST_MASK = (1 << _REQUEST_BITS) - 1
_NO_REQUEST = -1


class StepTotals:
    """The counters of an engine since the last observation.

    Histograms count per bucket; the last bucket is beyond all bounds.

    - prompt_tokens: of prompts with a first token, the cached ones included.
    - cached_tokens: prompt tokens found in the cache; None for an engine without one.
    """

    def __init__(self, ttft_bounds: tuple[float, ...], itl_bounds: tuple[float, ...]) -> None:
        self._ttft_bounds = ttft_bounds
        self._itl_bounds = itl_bounds
        self.prompt_tokens = 0
        self.cached_tokens: int | None = None
        self.generated_tokens = 0
        self.gap_seconds = 0.0
        self.finished = 0
        self.first_tokens = 0
        self.ttft_seconds = 0.0
        self.ttft_counts = [0] * (len(ttft_bounds) + 1)
        self.itl_counts = [0] * (len(itl_bounds) + 1)

    def add_gaps(self, tokens: int, seconds: float) -> None:
        """Counts tokens, each ``seconds`` after the one before."""
        self.gap_seconds += tokens * seconds

    def add_answer(self, seconds: float, gaps: int) -> None:
        """Counts a finished answer by its mean gap, as gateways do: ``gaps`` in ``seconds``."""
        self.finished += 1
        if gaps < 1:
            return
        bucket = 0
        for bound in self._itl_bounds:
            if seconds <= bound * gaps:
                break
            bucket += 1
        self.itl_counts[bucket] += 1

    def add_first_token(self, seconds: float, prompt_tokens: int) -> None:
        """Counts a first token ``seconds`` after its request."""
        self.prompt_tokens += prompt_tokens
        self.generated_tokens += 1
        self.first_tokens += 1
        self.ttft_seconds += seconds
        bucket = 0
        for bound in self._ttft_bounds:
            if seconds <= bound:
                break
            bucket += 1
        self.ttft_counts[bucket] += 1

    def empty_copy(self) -> "StepTotals":
        """Returns new counters at zero, with the same bounds."""
        totals = StepTotals(self._ttft_bounds, self._itl_bounds)
        totals.cached_tokens = None if self.cached_tokens is None else 0
        return totals


class PlantEngine(ABC):
    """One engine of the plant.

    - next_step_at: when its next step can begin.
    - slowdown: factor on every step; 1 is the profile's speed.
    - backlog_seconds, inflight_tokens: the load that a gateway counts, for engines with a role.

    A prefill engine answers with one token that no client sees. A decode engine computes one token
    of a prompt whose KV was transferred, and all tokens of a prompt that stayed with it.
    """

    def __init__(self, profile: EngineProfile, role: Role, requests: RequestTable, totals: StepTotals) -> None:
        self.profile = profile
        self.role = role
        self.requests = requests
        self.totals = totals
        self.next_step_at = 0.0
        self.slowdown = 1.0
        self.backlog_seconds = 0.0
        self.inflight_tokens = 0.0

    @abstractmethod
    def add(self, request: int, now: float) -> None:
        """Queues a request; ``advance`` has been called up to ``now``."""

    @abstractmethod
    def advance(self, until: float) -> None:
        """Takes every step that begins before ``until``."""

    @abstractmethod
    def drop_abandoned(self, now: float) -> None:
        """Drops waiting requests whose clients gave up."""

    @abstractmethod
    def evict(self) -> list[int]:
        """Removes and returns all requests in order of arrival."""

    @abstractmethod
    def running(self) -> int:
        """Returns the number of sequences in the batch."""

    @abstractmethod
    def waiting(self) -> int:
        """Returns the number of queued sequences."""

    @abstractmethod
    def kv_share(self) -> float:
        """Returns the share (0..1) of KV memory that running sequences fill."""

    @abstractmethod
    def load_tokens(self) -> int:
        """Returns the tokens in flight; uncomputed prompt tokens count twice."""

    @abstractmethod
    def uncomputed_tokens(self) -> int:
        """Returns the prompt tokens that this engine has yet to compute."""

    # Shared by both engine models --------------------------------------------------------------------------------------------

    def prompt_tokens_to_compute(self, request: int) -> int:
        return (
            1
            if self.role is Role.DECODE and not self.requests.computed_at_decode[request]
            else self.requests.prompt[request]
        )

    def tokens_to_generate(self, request: int) -> int:
        return 1 if self.role is Role.PREFILL else self.requests.output[request]

    def blocks_needed(self, request: int) -> int:
        return -(-(self.requests.prompt[request] + self.tokens_to_generate(request) - 1) // BLOCK_TOKENS)

    def on_routed(self, request: int) -> None:
        """Adds a request to the gateway's load."""
        if self.role is not Role.SERVE:
            self.backlog_seconds += self._prefill_seconds(request)
            self.inflight_tokens += self.requests.prompt[request] + DEFAULT_OUTPUT_TOKENS

    def on_client_gone(self, request: int) -> None:
        """Removes a request from the gateway's load; its client gave up before the first token."""
        if self.role is not Role.SERVE:
            self.backlog_seconds -= self._prefill_seconds(request)
            self.inflight_tokens -= self.requests.prompt[request] + DEFAULT_OUTPUT_TOKENS

    def on_first_token(self, request: int, now: float) -> None:
        book = self.requests
        if self.role is not Role.SERVE:
            self.backlog_seconds -= self._prefill_seconds(request)
        self.totals.add_first_token(now - book.sent[request], self.prompt_tokens_to_compute(request))
        if self.role is not Role.PREFILL and book.first[request] < 0.0:
            book.first[request] = now

    def on_finished(self, request: int, now: float) -> None:
        if self.role is not Role.SERVE:
            self.inflight_tokens -= self.requests.prompt[request] + DEFAULT_OUTPUT_TOKENS
        book = self.requests
        if self.role is Role.PREFILL:
            self.totals.finished += 1
            book.prefilled.append((now, request))
        else:
            book.end[request] = now
            self.totals.add_answer(now - book.first[request], book.output[request] - 1)

    def _prefill_seconds(self, request: int) -> float:
        prompt = self.requests.prompt[request]
        return self.profile.prefill_time(prompt, prompt - self.prompt_tokens_to_compute(request))


class AggregatedEngine(PlantEngine):
    """A plant engine in closed form."""

    def __init__(self, profile: EngineProfile, role: Role, requests: RequestTable, totals: StepTotals) -> None:
        super().__init__(profile, role, requests, totals)
        self._steps = 0
        self._batch = 0  # decoding sequences
        self._resident = 0  # KV tokens that the next decode step reads
        self._free_blocks = profile.kv_tokens // BLOCK_TOKENS
        self._max_batch = max(1, min(profile.max_sequences, profile.step_tokens))
        self._ends: list[int] = []  # heap of (step number << 24 | request)
        self._queue: deque[int] = deque()
        self._late: list[int] = []  # arrived in the present step, after the next was planned
        self._is_stepping = False
        self._queued_tokens = 0
        self._partial_prompt = _NO_REQUEST  # the prompt that exceeded the last step's budget
        self._partial_prompt_left = 0

    def add(self, request: int, now: float) -> None:
        if not self._batch and self._partial_prompt < 0 and not self._queue and not self._late:
            self.next_step_at = max(self.next_step_at, now)
        self.on_routed(request)
        if self._is_stepping:
            self._late.append(request)
        else:
            self._queue.append(request)
        self._queued_tokens += self.requests.prompt[request]

    def advance(self, until: float) -> None:
        while self.next_step_at < until:
            if (self._partial_prompt >= 0 or self._queue or self._late) and self._prompt_step():
                continue
            if not self._batch:
                self._is_stepping = False
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
        requests += [*self._queue, *self._late]
        self._queue.clear()
        self._late.clear()
        self._ends = []
        self._queued_tokens = self._batch = self._resident = self._partial_prompt_left = 0
        self.backlog_seconds = self.inflight_tokens = 0.0
        self._partial_prompt = _NO_REQUEST
        self._free_blocks = self.profile.kv_tokens // BLOCK_TOKENS
        return sorted(requests)

    def running(self) -> int:
        return self._batch + (self._partial_prompt >= 0)

    def waiting(self) -> int:
        return len(self._queue) + len(self._late)

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

    def uncomputed_tokens(self) -> int:
        if self.role is Role.DECODE:  # most prompts come with their KV
            queued_tokens = sum([self.prompt_tokens_to_compute(request) for request in (*self._queue, *self._late)])
        else:
            queued_tokens = self._queued_tokens
        return queued_tokens + self._partial_prompt_left

    def _enqueue_late(self) -> None:
        self._queue.extend(self._late)
        self._late.clear()

    def _drop_head(self) -> None:
        """Drops the head of the queue, whose client gave up."""
        request = self._queue.popleft()
        self.on_client_gone(request)
        self._queued_tokens -= self.requests.prompt[request]
        self.requests.abandoned += 1

    def _prompt_step(self) -> bool:
        """Takes one step that computes prompts. Returns False if no prompt can be admitted."""
        book, profile, queue = self.requests, self.profile, self._queue
        batch = self._batch
        budget = profile.step_tokens - batch
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
        self.drop_abandoned(self.next_step_at)
        if self._late and not (batch or chunks or queue):
            self._enqueue_late()
        while budget > 0 and queue:
            request = queue[0]
            if book.has_given_up(request, self.next_step_at):
                self._drop_head()
                continue
            need = self.blocks_needed(request)
            if batch + len(joined) >= self._max_batch or need > self._free_blocks:
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
        # profile.step, inlined: a call with keywords costs as much as the rest of the step.
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
        """Notes a request's first token, and adds the request to the decode batch or ends it."""
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
        """Takes steps without prompts up to the next end of a sequence, or to the first boundary ≥
        ``until``.
        """
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
        if self._late:
            steps = 1
        elif steps > 1 and (steps - 1) * (first + rise * (steps - 2) / 2) >= gap:
            steps = max(1, min(steps, _steps_until(gap, first, rise)))
        self._end_steps(steps, steps * (first + rise * (steps - 1) / 2))

    def _end_steps(self, steps: int, seconds: float) -> None:
        """Advances the decode batch by this many steps, which take ``seconds`` in all."""
        batch = self._batch
        self._is_stepping = True
        self._enqueue_late()
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
    """Returns the least number of steps that take ``gap`` seconds or more.

    The first step takes ``first`` seconds, each further one ``rise`` more than the one before.
    """
    straight = first - rise / 2
    if rise * gap < 1e-9 * straight * straight:
        return ceil(gap / first)
    return ceil((sqrt(straight * straight + 2.0 * rise * gap) - straight) / rise)


class TokenEngine(PlantEngine):
    """A plant engine that is an ``EngineCore``, without a prefix cache.

    preempting: admits a prompt that fits without its output, and preempts later.
    """

    def __init__(
        self,
        profile: EngineProfile,
        role: Role,
        requests: RequestTable,
        totals: StepTotals,
        *,
        preempting: bool = False,
    ) -> None:
        super().__init__(profile, role, requests, totals)
        self._core = EngineCore(profile, block_tokens=BLOCK_TOKENS, max_queue=1 << 30, events=False)
        self._order = count()
        self._requests_by_name: dict[str, int] = {}
        self._reserve_tokens = 0 if preempting else None
        self._preempted_at: dict[str, float] = {}  # preempted answer → time of its last token

    def add(self, request: int, now: float) -> None:
        if self._core.is_idle:
            self.next_step_at = max(self.next_step_at, now)
        book, name = self.requests, f"{request}/{next(self._order)}"
        self._requests_by_name[name] = request
        sequence = EngineSequence(
            name,
            now,
            book.prompt[request],
            self.tokens_to_generate(request),
            reserve_tokens=self._reserve_tokens,
            uses_cache=False,
        )
        sequence.pulled_tokens = book.prompt[request] - self.prompt_tokens_to_compute(request)
        self.on_routed(request)
        self._core.add(sequence)

    def advance(self, until: float) -> None:
        while self.next_step_at < until:
            self.drop_abandoned(self.next_step_at)
            step = self._core.step(self.next_step_at)
            if step is None:
                return
            seconds = self.slowdown * step.seconds
            for sequence in step.preempted:
                if sequence.generated:
                    self._preempted_at.setdefault(sequence.id, self.next_step_at)
            self.next_step_at += seconds
            decoded = len(step.tokens) - len(step.decode_starts)
            self.totals.generated_tokens += decoded
            self.totals.add_gaps(decoded, seconds)
            for sequence in step.decode_starts:
                before = self._preempted_at.pop(sequence.id, None)
                if before is not None:
                    self.totals.generated_tokens += 1
                    self.totals.add_gaps(1, self.next_step_at - before)
            for sequence in step.first_tokens:
                self.on_first_token(self._requests_by_name[sequence.id], self.next_step_at)
            for sequence, _ in step.finished:
                self.on_finished(self._requests_by_name.pop(sequence.id), self.next_step_at)

    def evict(self) -> list[int]:
        requests = sorted(self._requests_by_name.values())
        for name in self._requests_by_name:
            self._core.abort(name)
        self._requests_by_name.clear()
        self.backlog_seconds = self.inflight_tokens = 0.0
        self._preempted_at.clear()
        return requests

    def running(self) -> int:
        return self._core.stats.running

    def waiting(self) -> int:
        return self._core.stats.waiting

    def kv_share(self) -> float:
        return self._core.stats.kv_usage

    def load_tokens(self) -> int:
        burden = 0
        for sequence in self._core.sequences():
            burden += sequence.prompt_tokens + sequence.generated
            if not sequence.generated:
                burden += sequence.prompt_tokens - sequence.computed
        return burden

    def uncomputed_tokens(self) -> int:
        tokens = 0
        for sequence in self._core.sequences():
            if not sequence.generated:
                tokens += sequence.prompt_tokens - max(sequence.computed, sequence.pulled_tokens)
        return tokens

    def drop_abandoned(self, now: float) -> None:
        for sequence in self._core.sequences():
            request = self._requests_by_name[sequence.id]
            if not sequence.generated and self.requests.has_given_up(request, now):
                self._core.abort(sequence.id)
                del self._requests_by_name[sequence.id]
                self.on_client_gone(request)
                self.requests.abandoned += 1
