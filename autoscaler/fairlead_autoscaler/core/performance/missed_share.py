"""Missed share: the share of requests that miss their targets on a fleet of replicas.

`replica_capacity` gives the seconds T of an engine step and the sequences that run. From them:

- **No engine is free** for a prompt with the odds p^(sqrt(2(s + 1)) - 1). Here p is the share of
  time in prompts, and s the replicas that share the prompts. The wait beyond x then falls off as
  exp(-s·(1 - p)·x/S), with S the seconds of a prompt. What waits beyond the TTFT target is late.
- **Batch and memory** are queues of the same kind. Their servers are the sequences that fit, and
  the seconds of service those of an answer. A running sequence is size-biased: long answers run for
  longer. How much longer than the mean is learned (`running_answers`). Sizes that are not equal
  leave gaps: as many servers count as sequences of equal size would have.
- **Short answers between chunks.** A step with a full chunk may take longer than the TPOT target,
  which is for the mean gap of an answer. An answer of o tokens misses if over `within`·o of its
  steps carry a chunk. Chunks come in prompts of θ chunks, size-biased. The odds are exp(-o·I), by
  the large deviations of a compound Poisson process with exponential jumps. Here
  I = (sqrt(within) - sqrt(f))²/θ, and f is the share of steps with a chunk. In exponential answers
  of mean O that is 1/(1 + O·I). It takes a prompt that waits behind the answer's own, with the odds
  that no engine is free. Or it takes one that arrives while a short answer runs.
- **All answers** miss once the mean step comes close to the target.

Routing decides how many replicas share a queue. For prompts it is nearly all of them if the gateway
sends to the least prompt work. For memory it is about the root of their number.

Source: Sakasegawa's approximation of Erlang's C for the odds of waiting; the rate function is
Cramér's for the compound Poisson process. What is ours: that answers are hurt with the odds of a
*shared* queue, and the servers of unequal sizes.
"""

import math
from dataclasses import dataclass

from fairlead_autoscaler.core.performance.step_model import LatencyTargets, MeanRequest, StepModel

_PROMPT_SHARING, _MEMORY_SHARING = 0.85, 0.5
"""Replicas that share a queue, as powers of their number."""
_SHORT_ANSWERS = 0.4
"""Short answers, as a share of those that exponential lengths have."""
_LATER_PROMPTS = 0.5
"""Prompts that arrive at an engine that just computed one, as a share of those at a free engine."""
_GAP_SPREAD, _GAP_SPREAD_DECODING = 0.13, 0.043
"""Standard deviation of the mean gap of an answer, in TPOT targets; without prompts it is less."""


@dataclass(frozen=True, slots=True)
class MissedShares:
    """Shares (0..1) of requests that miss a target, by what makes them late."""

    prompts: float = 0.0
    batch: float = 0.0
    memory: float = 0.0
    gaps: float = 0.0
    prompt_busy: float = 0.0  # share of time in prompts; may exceed 1

    @property
    def total(self) -> float:
        """The share of requests that miss a target."""
        return min(1.0, self.prompts + self.batch + self.memory + self.gaps)


_ALL = MissedShares(1.0, 1.0, 1.0, 1.0, 1.0)


def missed_shares(
    step: StepModel, request: MeanRequest, targets: LatencyTargets, rate: float, replicas: float
) -> MissedShares:
    """Returns the missed shares where each of ``replicas`` gets ``rate`` requests per second."""
    busy = rate * step.engine_seconds(request)
    if busy >= 1.0:
        return _ALL
    return _Fleet(step, request, targets, rate, max(1.0, replicas)).missed()


class _Fleet:
    """One load on one fleet: the steps of its engines, and what waits."""

    def __init__(
        self, step: StepModel, request: MeanRequest, targets: LatencyTargets, rate: float, replicas: float
    ) -> None:
        self._step, self._request, self._targets = step, request, targets
        self._rate, self._replicas = rate, replicas
        self._mean_step = step.base_seconds / (1.0 - rate * step.engine_seconds(request))
        self._sequences = rate * request.output_tokens * self._mean_step
        self._plain_step = step.base_seconds + self._sequences * step.token_seconds(request.context_tokens)
        chunks = request.computed_tokens / step.chunk_tokens
        self._chunks = max(1.0, chunks)
        self._full_step = self._plain_step + step.prompt_seconds(request) / self._chunks
        self._prefill = self._chunks * self._full_step
        self._prompt_busy = rate * chunks * self._full_step
        self._prompt_engines = replicas**_PROMPT_SHARING

    def missed(self) -> MissedShares:
        """Returns the missed shares."""
        return MissedShares(
            self._late_prompts(), self._without_slot(), self._without_memory(), self._slow_answers(), self._prompt_busy
        )

    def _late_prompts(self) -> float:
        if self._targets.ttft_seconds is None:
            return 0.0
        service = self._prefill * (1.0 + self._request.prompt_variability) / 2
        return _late_share(self._prompt_busy, self._prompt_engines, self._slack(), service)

    def _without_slot(self) -> float:
        servers = self._replicas**_MEMORY_SHARING * self._step.max_sequences
        return _late_share(self._sequences / self._step.max_sequences, servers, self._slack(), self._answer_seconds())

    def _without_memory(self) -> float:
        request = self._request
        size = request.prompt_tokens + request.running_answer * request.output_tokens
        variance = request.prompt_variability * request.prompt_tokens**2 + request.output_tokens**2
        memory = max(float(self._step.kv_tokens), size)
        resident = (self._sequences + self._rate * self._prefill) * size
        servers = self._replicas**_MEMORY_SHARING * memory / size / (1.0 + variance / size**2)
        return _late_share(resident / memory, servers, self._slack(), self._answer_seconds())

    def _slack(self) -> float:
        """Returns the seconds for which a request may wait."""
        ttft, itl, output = self._targets.ttft_seconds, self._targets.itl_seconds, self._request.output_tokens
        if ttft is not None:
            return max(0.0, ttft - self._prefill)
        # Without a target for it, the first token may be late; on a decode engine gaps would be.
        return math.inf if itl is None else max(0.0, itl - self._mean_step) * output

    def _answer_seconds(self) -> float:
        return self._request.output_tokens * self._mean_step

    def _slow_answers(self) -> float:
        itl, request = self._targets.itl_seconds, self._request
        if itl is None or request.output_tokens < 2.0:
            return 0.0
        spread = itl * (_GAP_SPREAD if request.computed_tokens > 0.0 else _GAP_SPREAD_DECODING)
        late = 0.5 * math.erfc((itl - self._mean_step) / spread / math.sqrt(2.0))
        if self._full_step <= itl or self._prompt_busy <= 0.0:
            return late
        return min(1.0, late + self._short_answers(itl))

    def _short_answers(self, itl: float) -> float:
        """Returns the share of answers that see too many steps with a chunk."""
        busy = self._prompt_busy
        if busy >= 1.0 or itl <= self._plain_step:  # first: near saturation both steps may be equal
            return 1.0
        within = (itl - self._plain_step) / (self._full_step - self._plain_step)
        chunk_steps, plain_steps = busy / self._full_step, (1.0 - busy) / self._plain_step
        share = chunk_steps / (chunk_steps + plain_steps)
        if within <= share:
            return 1.0
        output = self._request.output_tokens
        run = max(
            1.0, self._request.computed_tokens / self._step.chunk_tokens * (1.0 + self._request.prompt_variability)
        )
        rate_function = (math.sqrt(within) - math.sqrt(share)) ** 2 / run
        behind = _none_free(busy, self._prompt_engines) / (1.0 + output * rate_function)
        # A prompt that arrives within the first (1 - within) of an answer, and is long enough.
        exposed = self._plain_step * (1.0 - within) / output / (1.0 / output + within / run) ** 2
        later = _LATER_PROMPTS * self._rate / (1.0 - busy) * exposed
        return min(1.0, _SHORT_ANSWERS * (behind + later))


def _none_free(busy: float, servers: float) -> float:
    """Returns the odds that none of ``servers``, each ``busy`` (0..1), is free."""
    return math.pow(busy, max(1.0, math.sqrt(2.0 * (servers + 1.0)) - 1.0))


def _late_share(busy: float, servers: float, slack: float, service: float) -> float:
    """Returns the share that waits for longer than ``slack`` seconds; ``service`` is in seconds."""
    if busy >= 1.0:
        return 1.0
    if busy <= 0.0 or slack == math.inf:
        return 0.0
    return _none_free(busy, servers) * math.exp(-servers * (1.0 - busy) * slack / service)
