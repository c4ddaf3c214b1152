"""What a replica carries: the requests per second at the knee of its objectives, from what a step costs.

A replica that gets r requests per second of ``prompt`` tokens to compute and ``output`` tokens to generate works in steps. In each,
every running sequence gets a token, and prompts that arrived meanwhile are computed. With a step of T seconds there are B =
r·output·T sequences running with ``context`` = prompt + output / 2 tokens each, and r·prompt·T prompt tokens a step. So

    T = a + b·B + c·context·B + d·r·prompt·T     that is     T = a / (1 - r·w),   w = d·prompt + output·(b + c·context)

``w`` is what a request costs in engine-seconds, r·w the share of its time that the replica spends on what was asked rather than on
turning over, and r·w -> 1 its saturation. The knee is the largest r at which all of these hold:

- a step, seen by a request as the gap between its tokens, is within the objective (less some room for steps that carry a chunk);
- where a step with a chunk passes that objective, short answers are hurt: with a share f of steps that carry one, in runs of
  chunks / (1 - f), an answer that is shorter than such a run sees nothing else. Lengths being about exponential, f·(1 - exp(-run /
  output)) of all answers do, which must stay well within the share that may miss;
- the sequences fit the batch, and their tokens the KV memory, with room for what they fluctuate: of n replicas together n·B
sequences do
  so by one over the root of n·B;
- prompts do not queue past the objective for the first token: one is computed in S = prompt / chunk steps that carry a full chunk,
  so the share of time in prompts is p = r·S. Of n replicas that share what comes a prompt finds one free but with the odds
  p^(sqrt(2(n + 1)) - 1) (Sakasegawa's approximation of Erlang's C, exact for one), and P(wait > x) is these odds times
  exp(-n·(1 - p)·x / S), which must not exceed the share of requests that may miss.

**Objectives that cannot be met.** Where a request alone on an engine takes as long as the objective, no number of replicas helps. It
is sized for the best there is to have then, which is also what an objective that can only just be met comes to, so that nothing
jumps between the two: prompts that find an engine free (x = 0 above), and steps that are longer by a quarter than the shortest
(r·w of a fifth). Below that no objective presses a replica. The plan says which objective it is (``unmet``).

Two questions are asked of the same bounds: what one of n replicas carries (``knee``), and how many replicas a load takes
(``replicas_for``). The second is not the load over the first, since what one carries grows with how many there are. Both are looked
for among fixed numbers, so that more load, or longer requests, never come to less by a rounding. Every bound holds at a load where it
holds at a larger one, and with n replicas where it does with fewer.

The step model is that of papers.md F1, the use of it as unit of scaling TokenScale's and Dynamo's; what differs is that all bounds
are taken at once, at the mix that is seen, with the speed that is seen."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from fairlead.engine_profile import EngineProfile
from fairlead_autoscaler.core.settings import ScalingSettings

_SEARCH_BITS = 18
_MIN_REPLICAS, _MIN_RATE, _SEARCH_STEP = 1e-4, 1e-9, 1e-4
"""Numbers of replicas, and rates, are looked for from the first two on, each larger than the one before by the third: 2^18 of
replicas, 2^19 of rates."""
_CHUNKS_OF_LONG_PROMPT, _MAX_SHORT_ANSWER_EXCESS = 6.0, 4.0
"""Where one prompt fills the steps of a whole short answer, the shortest answers decide, and there are up to so many times as many of
them as exponential lengths have (Mooncake's conversations: one answer in twenty has eleven tokens or fewer, at a mean of 335)."""
_OCCUPANCY_VARIANCE = 3.0
"""Variance of what a sequence holds over its time around its mean, plus one."""


class Bound(StrEnum):
    """What ends a replica's capacity."""

    ITL = "inter-token objective"
    BATCH = "batch"
    KV = "KV memory"
    TTFT = "first-token objective"


@dataclass(frozen=True, slots=True)
class MeanRequest:
    """A mean request: prompt tokens, the share of these that caches hold, and tokens generated; ``uneven`` is the variance of
    prompt lengths over the square of their mean."""

    prompt_tokens: float
    output_tokens: float
    cached_share: float = 0.0
    prompt_variability: float = 1.0

    @property
    def computed_tokens(self) -> float:
        """Prompt tokens that an engine computes."""
        return self.prompt_tokens * (1.0 - self.cached_share)

    @property
    def context_tokens(self) -> float:
        """Tokens that a running sequence holds, on average over its time."""
        return self.prompt_tokens + self.output_tokens / 2


@dataclass(frozen=True, slots=True)
class LatencyTargets:
    """Seconds to the first token and between tokens; None = no such objective. ``miss`` is the share that may miss."""

    ttft_seconds: float | None
    itl_seconds: float | None
    allowed_miss_share: float = 0.01


@dataclass(frozen=True, slots=True)
class StepModel:
    """What a step costs in seconds: ``base``, and for each sequence, resident token and prompt token. Of a profile with a floor of
    reading weights, decode tokens hide beneath that floor."""

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
        """The steps of ``profile`` where everything takes ``factor`` times as long."""
        # A decoded token is computed, too; beneath a floor it costs nothing more.
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

    def prompt_seconds(self, mix: MeanRequest) -> float:
        """Engine-seconds of a prompt, beside the steps' base."""
        computed = mix.computed_tokens
        return self.prompt_token_seconds * computed + self.attention_seconds * computed * (
            mix.prompt_tokens - computed / 2
        )

    def token_seconds(self, context: float) -> float:
        """Engine-seconds of one generated token, beside the steps' base."""
        return self.sequence_seconds + self.resident_token_seconds * context

    def engine_seconds(self, mix: MeanRequest) -> float:
        """Engine-seconds of one request (``w`` above)."""
        return max(1e-9, self.prompt_seconds(mix) + mix.output_tokens * self.token_seconds(mix.context_tokens))


@dataclass(frozen=True, slots=True)
class ReplicaCapacity:
    """What one replica carries: requests per second at the knee, the engine-seconds of a request, and what bounds it."""

    requests_per_second: float
    engine_seconds: float
    bound: Bound

    @property
    def busy_share(self) -> float:
        """Engine-seconds per second at the knee."""
        return self.requests_per_second * self.engine_seconds


@dataclass(frozen=True, slots=True)
class UnreachableTarget:
    """A bound that a request meets not even with an engine for itself: what it takes alone, and what there is (seconds, of KV memory
    tokens)."""

    bound: Bound
    required: float
    allowed: float

    def __str__(self) -> str:
        unit = "tokens" if self.bound is Bound.KV else "s"
        return f"{self.bound.value} cannot be met: one request alone takes {self.required:.3g} of {self.allowed:.3g} {unit}"


def find_unreachable_target(step: StepModel, mix: MeanRequest, objectives: LatencyTargets) -> UnreachableTarget | None:
    """What keeps a replica with nothing else to do from serving such a request within the objectives; None where nothing does."""
    tokens = mix.prompt_tokens + mix.output_tokens
    if tokens > step.kv_tokens:
        return UnreachableTarget(Bound.KV, tokens, step.kv_tokens)
    first = max(1.0, mix.computed_tokens / step.chunk_tokens) * step.base_seconds + step.prompt_seconds(mix)
    if objectives.ttft_seconds is not None and first > objectives.ttft_seconds:
        return UnreachableTarget(Bound.TTFT, first, objectives.ttft_seconds)
    gap = step.base_seconds + step.token_seconds(mix.context_tokens)
    if objectives.itl_seconds is not None and mix.output_tokens >= 2.0 and gap > objectives.itl_seconds:
        return UnreachableTarget(Bound.ITL, gap, objectives.itl_seconds)
    return None


def knee_capacity(
    step: StepModel, mix: MeanRequest, objectives: LatencyTargets, replicas: float, settings: ScalingSettings
) -> ReplicaCapacity:
    """The largest rate of requests of ``mix`` that one of so many ``replicas`` serves within ``objectives``, or as near to them as
    makes sense."""
    work = step.engine_seconds(mix)
    limits = _KneeBounds(step, mix, work, objectives, settings)

    def rate(place: int) -> float:
        return _MIN_RATE * math.exp(_SEARCH_STEP * place)

    def too_much(place: int) -> bool:
        each = rate(place)
        return each * work >= 1.0 or limits.first_exceeded(each, replicas) is not None

    first = _first_true(0, 2 << _SEARCH_BITS, too_much)
    return ReplicaCapacity(rate(first - 1), work, limits.first_exceeded(rate(first), replicas) or Bound.TTFT)


def replicas_for(
    step: StepModel, mix: MeanRequest, objectives: LatencyTargets, rate: float, near: float, settings: ScalingSettings
) -> float:
    """How many replicas serve ``rate`` requests of ``mix`` per second within ``objectives``, or as near to them as makes sense; not
    whole. It is found sooner where it lies ``near`` what is given, and is the same in any case."""
    if rate <= 0.0:
        return 0.0
    rate = float(f"{rate:.9g}")  # the same load comes by several ways, and their roundings are no difference
    work = step.engine_seconds(mix)
    limits = _KneeBounds(step, mix, work, objectives, settings)

    def count(place: int) -> float:
        return _MIN_REPLICAS * math.exp(_SEARCH_STEP * place)

    def enough(place: int) -> bool:
        each = rate / count(place)
        return each * work < 1.0 and limits.first_exceeded(each, count(place)) is None

    last = (1 << _SEARCH_BITS) - 1
    low, high = -1, last
    place = min(last - 1, max(0, round(math.log(max(near, _MIN_REPLICAS) / _MIN_REPLICAS) / _SEARCH_STEP)))
    step_size = 64
    while low < place < high:
        if enough(place):
            high, place = place, place - step_size
        else:
            low, place = place, place + step_size
        step_size *= 4
    return count(_first_true(low, high, enough))


def _first_true(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first place above ``low`` where it ``holds``, as it does from there on; ``high`` where it does at none before."""
    while high - low > 1:
        place = (low + high) // 2
        if holds(place):
            high = place
        else:
            low = place
    return high


class _KneeBounds:
    """The bounds with what does not depend on the rate worked out beforehand."""

    __slots__ = (
        "_base",
        "_batch",
        "_chunks",
        "_context",
        "_gap_most",
        "_kv",
        "_miss",
        "_output",
        "_prompt",
        "_prompt_seconds",
        "_room",
        "_settings",
        "_token",
        "_turn_most",
        "_uneven",
        "_work",
    )

    def __init__(
        self, step: StepModel, mix: MeanRequest, work: float, objectives: LatencyTargets, settings: ScalingSettings
    ) -> None:
        self._base, self._work, self._settings = step.base_seconds, work, settings
        # Who needs more than there is needs all of it.
        self._batch, self._kv = step.max_sequences, max(float(step.kv_tokens), mix.prompt_tokens + mix.output_tokens)
        self._prompt, self._output, self._context = mix.prompt_tokens, mix.output_tokens, mix.context_tokens
        self._uneven = mix.prompt_variability
        self._token = step.token_seconds(mix.context_tokens)
        self._chunks = max(mix.computed_tokens / step.chunk_tokens, 1e-9)
        self._prompt_seconds = step.prompt_seconds(mix)
        self._room, self._miss = objectives.ttft_seconds, objectives.allowed_miss_share
        gaps = objectives.itl_seconds is not None and mix.output_tokens >= 2
        # Steps with a chunk are the longest, and short answers get many of them.
        share = settings.itl_share if mix.computed_tokens > 0.0 else settings.itl_share_decoding
        self._gap_most = objectives.itl_seconds or math.inf if gaps else math.inf
        self._turn_most = (objectives.itl_seconds or 0.0) * share if gaps else math.inf

    def first_exceeded(self, rate: float, replicas: float) -> Bound | None:
        """The bound that ``rate`` passes at each of so many ``replicas``, if any."""
        together = max(1.0, replicas)
        turn = self._base / max(1e-9, 1.0 - rate * self._work)
        pressed = rate * self._work > self._settings.busy_least
        if pressed and turn > self._turn_most:
            return Bound.ITL
        sequences = rate * self._output * turn
        # What may wait for a first token need not fit at once.
        stays = self._output * turn
        patience = stays / (stays + (self._room or 0.0))
        if sequences * self._crowding_factor(sequences * together, patience) > self._batch:
            return Bound.BATCH
        full = self._base + sequences * self._token + self._prompt_seconds / max(1.0, self._chunks)
        service = max(1.0, self._chunks) * full
        # A prompt that is being computed is resident too, half of it on average.
        if pressed and self._exceeds_gap_target(
            rate * max(1.0, self._chunks) * turn, self._base + sequences * self._token, full
        ):
            return Bound.ITL
        prompts = rate * service
        count = (
            rate * self._output * self._base + prompts
        ) * together  # with the shortest steps, or it grows faster than they
        resident = (
            sequences * self._context * self._crowding_factor(sequences * together, _OCCUPANCY_VARIANCE * patience)
        )
        resident += prompts * self._prompt / 2 * self._crowding_factor(count, _OCCUPANCY_VARIANCE * patience)
        if resident > self._kv:
            return Bound.KV
        return Bound.TTFT if self._exceeds_ttft_target(rate * self._chunks * full, service, together) else None

    def _crowding_factor(self, count: float, variance: float) -> float:
        """How many times as much there is at times as on the mean, of so many together."""
        return 1.0 + self._settings.crowd_sigmas * math.sqrt(variance / max(1.0, count))

    def _exceeds_gap_target(self, busy: float, plain: float, full: float) -> bool:
        """Do more answers see mostly steps with a chunk than may, where such a step passes the objective? ``busy`` is their
        share."""
        if full <= self._gap_most or busy <= 0.0:
            return False
        within = (self._gap_most - plain) / (full - plain)
        if within <= 0.0 or busy >= 1.0:
            return True
        chunks = max(1.0, self._chunks * (1.0 + self._uneven))
        short = -math.expm1(-chunks / (1.0 - busy) / within / self._output)
        whole = max(1.0, chunks / _CHUNKS_OF_LONG_PROMPT)
        more = min(_MAX_SHORT_ANSWER_EXCESS, whole * whole)
        return busy * short * more > self._miss * self._settings.hurt_share

    def _exceeds_ttft_target(self, busy: float, service: float, replicas: float) -> bool:
        """Do more prompts wait past the objective than may?"""
        if busy >= self._settings.prefill_busy_most:
            return True
        if self._room is None or busy <= 0.0:
            return False
        none_free = math.pow(busy, math.sqrt(2.0 * (replicas + 1.0)) - 1.0)
        room = max(0.0, self._room - service)
        return none_free * math.exp(-replicas * (1.0 - busy) * room / (service * (1.0 + self._uneven) / 2)) > self._miss
