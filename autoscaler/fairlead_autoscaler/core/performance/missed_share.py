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

Why two classes: a search for a capacity tries dozens of rates and of numbers of replicas.
`MissPredictor` computes once what depends on neither, `FleetMisses` what the rate does not change.

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
_ROOT_OF_TWO = math.sqrt(2.0)


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
        return min(1.0, self.prompts + self.batch + self.memory + self.gaps)


def missed_shares(
    step: StepModel, request: MeanRequest, targets: LatencyTargets, rate: float, replicas: float
) -> MissedShares:
    """Returns the missed shares where each of ``replicas`` gets ``rate`` requests per second."""
    return MissedShares(*MissPredictor(step, request, targets).on_fleet(replicas).shares(rate))


class MissPredictor:
    """The missed shares of one workload on replicas of one kind, for any rate and number of them.

    engine_seconds: of one request.
    """

    def __init__(self, step: StepModel, request: MeanRequest, targets: LatencyTargets) -> None:
        self.step, self.request, self.targets = step, request, targets
        self.engine_seconds = step.engine_seconds(request)
        self.token_seconds = step.token_seconds(request.context_tokens)
        self.chunks = request.computed_tokens / step.chunk_tokens
        self.chunk_steps = max(1.0, self.chunks)
        self.chunk_seconds = step.prompt_seconds(request) / self.chunk_steps
        self.chunk_run = max(1.0, self.chunks * (1.0 + request.prompt_variability))
        # In KV memory: the tokens of a running sequence, and the gaps that unequal sizes leave.
        self.resident_tokens = request.prompt_tokens + request.running_answer * request.output_tokens
        self.memory_tokens = max(float(step.kv_tokens), self.resident_tokens)
        variance = request.prompt_variability * request.prompt_tokens**2 + request.output_tokens**2
        self.unevenness = 1.0 + variance / self.resident_tokens**2

    def on_fleet(self, replicas: float) -> "FleetMisses":
        return FleetMisses(self, max(1.0, replicas))


class FleetMisses:
    """The missed shares of one workload on one fleet, for any rate of requests."""

    def __init__(self, predictor: MissPredictor, replicas: float) -> None:
        step, sharing = predictor.step, replicas**_MEMORY_SHARING
        self._predictor = predictor
        self._prompts = _Queue(replicas**_PROMPT_SHARING)
        self._batch = _Queue(sharing * step.max_sequences)
        self._memory = _Queue(sharing * predictor.memory_tokens / predictor.resident_tokens / predictor.unevenness)

    def shares(self, rate: float) -> tuple[float, float, float, float, float]:
        """Returns the fields of `MissedShares` where each replica gets ``rate`` requests per
        second.
        """
        predictor = self._predictor
        busy = rate * predictor.engine_seconds
        if busy >= 1.0:
            return 1.0, 1.0, 1.0, 1.0, 1.0
        step, request = predictor.step, predictor.request
        ttft, itl, output = predictor.targets.ttft_seconds, predictor.targets.itl_seconds, request.output_tokens
        mean_step = step.base_seconds / (1.0 - busy)
        sequences = rate * output * mean_step
        plain_step = step.base_seconds + sequences * predictor.token_seconds
        full_step = plain_step + predictor.chunk_seconds
        prefill = predictor.chunk_steps * full_step
        prompt_busy = rate * predictor.chunks * full_step
        prompts = gaps = 0.0
        # The seconds for which a request may wait. Without a target for it, the first token may be
        # late; on a decode engine gaps would be.
        slack = math.inf
        if ttft is not None:
            slack = max(0.0, ttft - prefill)
            prompts = self._prompts.late_share(prompt_busy, slack, prefill * (1.0 + request.prompt_variability) / 2)
        elif itl is not None:
            slack = max(0.0, itl - mean_step) * output
        answer = output * mean_step
        batch = self._batch.late_share(sequences / step.max_sequences, slack, answer)
        resident = (sequences + rate * prefill) * predictor.resident_tokens
        memory = self._memory.late_share(resident / predictor.memory_tokens, slack, answer)
        if itl is not None and output >= 2.0:
            spread = itl * (_GAP_SPREAD if request.computed_tokens > 0.0 else _GAP_SPREAD_DECODING)
            gaps = 0.5 * math.erfc((itl - mean_step) / spread / _ROOT_OF_TWO)
            if full_step > itl and prompt_busy > 0.0:
                gaps = min(1.0, gaps + self._short_answers(rate, prompt_busy, plain_step, full_step, itl))
        return prompts, batch, memory, gaps, prompt_busy

    def _short_answers(self, rate: float, busy: float, plain_step: float, full_step: float, itl: float) -> float:
        """Returns the share of answers that see too many steps with a chunk."""
        if busy >= 1.0 or itl <= plain_step:  # first: near saturation both steps may be equal
            return 1.0
        within = (itl - plain_step) / (full_step - plain_step)
        chunk_steps, plain_steps = busy / full_step, (1.0 - busy) / plain_step
        share = chunk_steps / (chunk_steps + plain_steps)
        if within <= share:
            return 1.0
        output, run = self._predictor.request.output_tokens, self._predictor.chunk_run
        rate_function = (math.sqrt(within) - math.sqrt(share)) ** 2 / run
        behind = self._prompts.none_free(busy) / (1.0 + output * rate_function)
        # A prompt that arrives within the first (1 - within) of an answer, and is long enough.
        exposed = plain_step * (1.0 - within) / output / (1.0 / output + within / run) ** 2
        later = _LATER_PROMPTS * rate / (1.0 - busy) * exposed
        return min(1.0, _SHORT_ANSWERS * (behind + later))


class _Queue:
    """A queue in front of so many servers."""

    __slots__ = ("_exponent", "_servers")

    def __init__(self, servers: float) -> None:
        self._servers = servers
        self._exponent = max(1.0, math.sqrt(2.0 * (servers + 1.0)) - 1.0)

    def none_free(self, busy: float) -> float:
        return math.pow(busy, self._exponent)

    def late_share(self, busy: float, slack: float, service: float) -> float:
        """Returns the share that waits for longer than ``slack`` seconds; ``service`` is in
        seconds.
        """
        if busy >= 1.0:
            return 1.0
        if busy <= 0.0 or slack == math.inf:
            return 0.0
        return math.pow(busy, self._exponent) * math.exp(-self._servers * (1.0 - busy) * slack / service)
