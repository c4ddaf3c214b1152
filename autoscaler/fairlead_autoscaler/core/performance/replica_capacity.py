"""Capacity of a replica: its requests per second at the SLO, from the seconds of an engine step.

A replica that gets r requests per second, each with `prompt` tokens to compute and `output` tokens
to generate, works in steps. Each step generates one token for every running sequence and computes
prompts that arrived meanwhile. With steps of T seconds, B = r·output·T sequences run, with context
= prompt + output/2 tokens each, and a step computes r·prompt·T prompt tokens. So

    T = a + b·B + c·context·B + d·r·prompt·T
    T = a / (1 - r·w),   w = d·prompt + output·(b + c·context)

A request costs `w` engine-seconds. So r·w is the share of time that goes into requests and not into
the base of the steps. Saturation is r·w -> 1. The capacity is the largest r for which all of these
hold:

- A step is within the TPOT target, less some room for steps that carry a chunk of a prompt. A
  request sees a step as the gap between its tokens.
- Few short answers suffer from steps with a chunk, if such a step exceeds that target. With a
  share f of steps that carry one, in runs of chunks/(1 - f), an answer shorter than a run sees
  nothing else. Lengths are about exponential, so f·(1 - exp(-run/output)) of all answers do. That
  share must stay well within the share that may miss.
- The sequences fit the batch, and their tokens the KV memory, with room for fluctuation. Together,
  n·B sequences of n replicas fluctuate by one over the root of n·B.
- Prompts do not wait beyond the TTFT target. A prompt is computed in S = prompt/chunk steps with a
  full chunk, so the share of time in prompts is p = r·S. Of n replicas none is free with the odds
  p^(sqrt(2(n + 1)) - 1). P(wait > x) is these odds times exp(-n·(1 - p)·x/S), and must not exceed
  the share of requests that may miss.

Targets that cannot be met: if one request alone on an engine takes longer than a target, no number
of replicas helps. Sizing then uses the best that there is. A target that can only just be met leads
to the same, so nothing jumps between the two cases. Prompts find a free engine (x = 0 above), and
steps are at most a quarter longer than the shortest (r·w of a fifth). Below that, no target limits
a replica. The plan names the target (`find_unreachable_target`).

The same bounds answer two questions: the capacity of one of n replicas (`knee_capacity`), and the
replicas for a load (`replicas_for`). The second is not the load divided by the first, since
capacity per replica grows with n. Both search among fixed numbers, so that no rounding makes more
load or longer requests need less. Every bound that holds at a load holds at a smaller one, and with
more replicas.

Source: Sakasegawa's approximation of Erlang's C (exact for one server) gives the odds that no
replica is free. TokenScale and Dynamo also scale by such a step model; here all bounds apply at
once, at the measured workload and speed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from fairlead.engine_profile import EngineProfile
from fairlead_autoscaler.core.settings import CapacitySettings

_SEARCH_BITS = 18
_MIN_REPLICAS, _MIN_RATE, _SEARCH_STEP = 1e-4, 1e-9, 1e-4
"""Replicas and rates are searched from these minima on, each larger than the one before by the
factor e^step: 2^18 numbers of replicas, 2^19 rates."""
_CHUNKS_OF_LONG_PROMPT, _MAX_SHORT_ANSWER_EXCESS = 6.0, 4.0
"""If one prompt fills the steps of a whole short answer, the shortest answers decide. There are up
to four times as many as exponential lengths have.

Source: Mooncake's conversations, where one answer in twenty has at most 11 tokens, at a mean of
335."""
_OCCUPANCY_VARIANCE = 3.0
"""Variance of the tokens that a sequence holds over its time, in squares of their mean, plus
one."""


class Bound(StrEnum):
    """The bound that limits the capacity of a replica."""

    ITL = "TPOT target"
    BATCH = "batch size"
    KV = "KV memory"
    TTFT = "TTFT target"


@dataclass(frozen=True, slots=True)
class MeanRequest:
    """The mean request of a workload.

    cached_share: share of the prompt tokens that is cached, 0..1.
    prompt_variability: variance of prompt lengths, in squares of their mean.
    """

    prompt_tokens: float
    output_tokens: float
    cached_share: float = 0.0
    prompt_variability: float = 1.0

    @property
    def computed_tokens(self) -> float:
        """Prompt tokens that are not cached."""
        return self.prompt_tokens * (1.0 - self.cached_share)

    @property
    def context_tokens(self) -> float:
        """Mean tokens of a running sequence, over its time."""
        return self.prompt_tokens + self.output_tokens / 2


@dataclass(frozen=True, slots=True)
class LatencyTargets:
    """Latency targets of a request; None: no such target.

    allowed_miss_share: share of requests that may miss them.
    """

    ttft_seconds: float | None
    itl_seconds: float | None
    allowed_miss_share: float = 0.01


@dataclass(frozen=True, slots=True)
class StepModel:
    """The seconds of an engine step: a base, and the cost of each sequence, resident token and
    prompt token.

    If the profile has a floor for reading weights, decoded tokens cost nothing above it.
    """

    base_seconds: float
    sequence_seconds: float
    resident_token_seconds: float
    prompt_token_seconds: float
    attention_seconds: float
    chunk_tokens: int
    max_sequences: int
    kv_tokens: int

    @classmethod
    def from_profile(cls, profile: EngineProfile, factor: float = 1.0) -> "StepModel":
        """Returns the step model of a profile, with all times multiplied by `factor`."""
        # A decoded token is computed like a prompt token, unless the floor hides it.
        decoded = 0.0 if profile.weights_seconds else profile.prefill_token_seconds
        return cls(
            max(1e-6, (profile.step_seconds + profile.weights_seconds) * factor),
            (profile.sequence_seconds + decoded) * factor,
            profile.resident_token_seconds * factor,
            profile.prefill_token_seconds * factor,
            profile.attention_seconds * factor,
            max(1, profile.step_tokens),
            max(1, profile.max_sequences),
            max(1, profile.kv_tokens),
        )

    def prompt_seconds(self, request: MeanRequest) -> float:
        """Returns the engine-seconds of a prompt, without the base of the steps."""
        computed = request.computed_tokens
        return self.prompt_token_seconds * computed + self.attention_seconds * computed * (
            request.prompt_tokens - computed / 2
        )

    def token_seconds(self, context: float) -> float:
        """Returns the engine-seconds of one generated token, without the base of the steps."""
        return self.sequence_seconds + self.resident_token_seconds * context

    def engine_seconds(self, request: MeanRequest) -> float:
        """Returns the engine-seconds of one request (`w` in the formulas above)."""
        seconds = self.prompt_seconds(request) + request.output_tokens * self.token_seconds(request.context_tokens)
        return max(1e-9, seconds)


@dataclass(frozen=True, slots=True)
class ReplicaCapacity:
    """The capacity of one replica in requests per second, and the bound that limits it.

    engine_seconds: engine time of one request.
    """

    requests_per_second: float
    engine_seconds: float
    bound: Bound


@dataclass(frozen=True, slots=True)
class UnreachableTarget:
    """A bound that one request exceeds even alone on an engine.

    required, allowed: seconds, or tokens for KV memory.
    """

    bound: Bound
    required: float
    allowed: float

    def __str__(self) -> str:
        unit = "tokens" if self.bound is Bound.KV else "s"
        return f"{self.bound.value} cannot be met: one request alone takes {self.required:.3g} of {self.allowed:.3g} {unit}"


def find_unreachable_target(step: StepModel, request: MeanRequest, targets: LatencyTargets) -> UnreachableTarget | None:
    """Returns the bound that keeps an otherwise idle replica from serving the request within the
    targets; None: there is none.
    """
    tokens = request.prompt_tokens + request.output_tokens
    if tokens > step.kv_tokens:
        return UnreachableTarget(Bound.KV, tokens, step.kv_tokens)
    first = max(1.0, request.computed_tokens / step.chunk_tokens) * step.base_seconds + step.prompt_seconds(request)
    if targets.ttft_seconds is not None and first > targets.ttft_seconds:
        return UnreachableTarget(Bound.TTFT, first, targets.ttft_seconds)
    gap = step.base_seconds + step.token_seconds(request.context_tokens)
    if targets.itl_seconds is not None and request.output_tokens >= 2.0 and gap > targets.itl_seconds:
        return UnreachableTarget(Bound.ITL, gap, targets.itl_seconds)
    return None


def knee_capacity(
    step: StepModel, request: MeanRequest, targets: LatencyTargets, replicas: float, settings: CapacitySettings
) -> ReplicaCapacity:
    """Returns the capacity of each of `replicas`, and the bound that limits it.

    It is the largest rate within the targets, or as near to them as possible.
    """
    engine_seconds = step.engine_seconds(request)
    bounds = _KneeBounds(step, request, targets, settings)

    def rate(index: int) -> float:
        return _MIN_RATE * math.exp(_SEARCH_STEP * index)

    def is_too_much(index: int) -> bool:
        return rate(index) * engine_seconds >= 1.0 or bounds.first_exceeded(rate(index), replicas) is not None

    first = _first_true(0, 2 << _SEARCH_BITS, is_too_much)
    return ReplicaCapacity(rate(first - 1), engine_seconds, bounds.first_exceeded(rate(first), replicas) or Bound.TTFT)


def replicas_for(
    step: StepModel,
    request: MeanRequest,
    targets: LatencyTargets,
    rate: float,
    near: float,
    settings: CapacitySettings,
) -> float:
    """Returns the replicas that serve `rate` requests per second within the targets, or as near to
    them as possible. The number need not be whole.

    near: a guess; it only makes the search shorter.
    """
    if rate <= 0.0:
        return 0.0
    rate = float(f"{rate:.9g}")  # several computations lead to one load; their rounding must not count
    engine_seconds = step.engine_seconds(request)
    bounds = _KneeBounds(step, request, targets, settings)

    def count(index: int) -> float:
        return _MIN_REPLICAS * math.exp(_SEARCH_STEP * index)

    def is_enough(index: int) -> bool:
        share = rate / count(index)
        return share * engine_seconds < 1.0 and bounds.first_exceeded(share, count(index)) is None

    last = (1 << _SEARCH_BITS) - 1
    low, high = -1, last
    index = min(last - 1, max(0, round(math.log(max(near, _MIN_REPLICAS) / _MIN_REPLICAS) / _SEARCH_STEP)))
    stride = 64
    while low < index < high:
        if is_enough(index):
            high, index = index, index - stride
        else:
            low, index = index, index + stride
        stride *= 4
    return count(_first_true(low, high, is_enough))


def _first_true(low: int, high: int, predicate: Callable[[int], bool]) -> int:
    """Returns the first index above `low` from which on the predicate holds; `high` if there is
    none.
    """
    while high - low > 1:
        middle = (low + high) // 2
        if predicate(middle):
            high = middle
        else:
            low = middle
    return high


class _KneeBounds:
    """The bounds of one replica under one mean request; everything that the rate does not change is
    computed once.
    """

    __slots__ = (
        "_allowed_miss_share",
        "_base",
        "_chunks",
        "_context",
        "_kv_tokens",
        "_max_gap",
        "_max_sequences",
        "_max_step",
        "_output",
        "_prompt",
        "_prompt_seconds",
        "_prompt_variability",
        "_request_seconds",
        "_settings",
        "_token",
        "_ttft",
    )

    def __init__(
        self, step: StepModel, request: MeanRequest, targets: LatencyTargets, settings: CapacitySettings
    ) -> None:
        self._settings = settings
        self._base, self._request_seconds = step.base_seconds, step.engine_seconds(request)
        # A request that needs more KV memory than there is takes all of it.
        self._max_sequences = step.max_sequences
        self._kv_tokens = max(float(step.kv_tokens), request.prompt_tokens + request.output_tokens)
        self._prompt, self._output = request.prompt_tokens, request.output_tokens
        self._context = request.context_tokens
        self._prompt_variability = request.prompt_variability
        self._token = step.token_seconds(request.context_tokens)
        self._chunks = max(request.computed_tokens / step.chunk_tokens, 1e-9)
        self._prompt_seconds = step.prompt_seconds(request)
        self._ttft, self._allowed_miss_share = targets.ttft_seconds, targets.allowed_miss_share
        has_gaps = targets.itl_seconds is not None and request.output_tokens >= 2
        # Steps with a chunk are the longest, and short answers get many of them.
        share = settings.itl_share if request.computed_tokens > 0.0 else settings.itl_share_decoding
        self._max_gap = targets.itl_seconds or math.inf if has_gaps else math.inf
        self._max_step = (targets.itl_seconds or 0.0) * share if has_gaps else math.inf

    def first_exceeded(self, rate: float, replicas: float) -> Bound | None:
        """Returns the bound that `rate` exceeds on each of `replicas`; None: there is none."""
        together = max(1.0, replicas)
        step = self._base / max(1e-9, 1.0 - rate * self._request_seconds)
        is_busy = rate * self._request_seconds > self._settings.busy_least
        if is_busy and step > self._max_step:
            return Bound.ITL
        sequences = rate * self._output * step
        # Requests that may wait for a first token need not fit at once.
        duration = self._output * step
        running_share = duration / (duration + (self._ttft or 0.0))
        if sequences * self._crowding_factor(sequences * together, running_share) > self._max_sequences:
            return Bound.BATCH
        full_step = self._base + sequences * self._token + self._prompt_seconds / max(1.0, self._chunks)
        prefill = max(1.0, self._chunks) * full_step
        chunk_share = rate * max(1.0, self._chunks) * step
        if is_busy and self._exceeds_gap_target(chunk_share, self._base + sequences * self._token, full_step):
            return Bound.ITL
        # A prompt that is being computed is resident too, half of it on average. The shortest steps
        # count for its crowding, or it would grow faster than the prompts.
        prompts = rate * prefill
        count = (rate * self._output * self._base + prompts) * together
        variance = _OCCUPANCY_VARIANCE * running_share
        resident = sequences * self._context * self._crowding_factor(sequences * together, variance)
        resident += prompts * self._prompt / 2 * self._crowding_factor(count, variance)
        if resident > self._kv_tokens:
            return Bound.KV
        return Bound.TTFT if self._exceeds_ttft_target(rate * self._chunks * full_step, prefill, together) else None

    def _crowding_factor(self, count: float, variance: float) -> float:
        """Returns the ratio of the peak to the mean of `count` independent items."""
        return 1.0 + self._settings.crowd_sigmas * math.sqrt(variance / max(1.0, count))

    def _exceeds_gap_target(self, chunk_share: float, plain_step: float, full_step: float) -> bool:
        """Whether too many answers see mostly steps with a chunk, and such a step exceeds the
        target.
        """
        if full_step <= self._max_gap or chunk_share <= 0.0:
            return False
        within = (self._max_gap - plain_step) / (full_step - plain_step)
        if within <= 0.0 or chunk_share >= 1.0:
            return True
        chunks = max(1.0, self._chunks * (1.0 + self._prompt_variability))
        short = -math.expm1(-chunks / (1.0 - chunk_share) / within / self._output)
        prompts = max(1.0, chunks / _CHUNKS_OF_LONG_PROMPT)
        excess = min(_MAX_SHORT_ANSWER_EXCESS, prompts * prompts)
        return chunk_share * short * excess > self._allowed_miss_share * self._settings.hurt_share

    def _exceeds_ttft_target(self, busy: float, prefill: float, replicas: float) -> bool:
        """Whether too many prompts wait beyond the target."""
        if busy >= self._settings.prefill_busy_most:
            return True
        if self._ttft is None or busy <= 0.0:
            return False
        none_free = math.pow(busy, math.sqrt(2.0 * (replicas + 1.0)) - 1.0)
        slack = max(0.0, self._ttft - prefill)
        mean_prefill = prefill * (1.0 + self._prompt_variability) / 2
        return none_free * math.exp(-replicas * (1.0 - busy) * slack / mean_prefill) > self._allowed_miss_share
