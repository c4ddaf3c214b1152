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
  so the share of time in prompts is r·S, and where n replicas share what comes P(wait > x) = r·S·exp(-n·(1 - r·S)·x / S), which
  must not exceed the share of requests that may miss.

Work per second divided by ``w`` and by r is how many replicas a load needs. The step model is that of papers.md F1, the use of it
as unit of scaling TokenScale's and Dynamo's; what differs is that all bounds are taken at once, at the mix that is seen, with the
speed that is seen."""

import math
from dataclasses import dataclass
from enum import StrEnum

from fairlead.profile import EngineProfile
from fairlead_autoscaler.scaling.settings import ScalingSettings

_HALVINGS = 14
_MANY_CHUNKS, _SHORTER = 6.0, 4.0
"""Where one prompt fills the steps of a whole short answer, the shortest answers decide, and there are up to so many times as many of
them as exponential lengths have (Mooncake's conversations: one answer in twenty has eleven tokens or fewer, at a mean of 335)."""
_SHOT = 3.0
"""Variance of what a sequence holds over its time around its mean, plus one."""


class Bound(StrEnum):
    """What ends a replica's capacity."""

    ITL = "inter-token objective"
    BATCH = "batch"
    KV = "KV memory"
    TTFT = "first-token objective"


@dataclass(frozen=True, slots=True)
class Mix:
    """A mean request: prompt tokens, the share of these that caches hold, and tokens generated; ``uneven`` is the variance of
    prompt lengths over the square of their mean."""

    prompt: float
    output: float
    cached: float = 0.0
    uneven: float = 1.0

    @property
    def computed(self) -> float:
        """Prompt tokens that an engine computes."""
        return self.prompt * (1.0 - self.cached)

    @property
    def context(self) -> float:
        """Tokens that a running sequence holds, on average over its time."""
        return self.prompt + self.output / 2


@dataclass(frozen=True, slots=True)
class Objectives:
    """Seconds to the first token and between tokens; None = no such objective. ``miss`` is the share that may miss."""

    ttft_seconds: float | None
    itl_seconds: float | None
    miss: float = 0.01


@dataclass(frozen=True, slots=True)
class Step:
    """What a step costs in seconds: ``base``, and for each sequence, resident token and prompt token. Of a profile with a floor of
    reading weights, decode tokens hide beneath that floor."""

    base: float
    per_sequence: float
    per_resident: float
    per_prompt: float
    attention: float
    chunk: int
    max_sequences: int
    kv_tokens: int

    @classmethod
    def of(cls, profile: EngineProfile, factor: float = 1.0) -> "Step":
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

    def prompt_seconds(self, mix: Mix) -> float:
        """Engine-seconds of a prompt, beside the steps' base."""
        computed = mix.computed
        return self.per_prompt * computed + self.attention * computed * (mix.prompt - computed / 2)

    def token_seconds(self, context: float) -> float:
        """Engine-seconds of one generated token, beside the steps' base."""
        return self.per_sequence + self.per_resident * context

    def work(self, mix: Mix) -> float:
        """Engine-seconds of one request (``w`` above)."""
        return max(1e-9, self.prompt_seconds(mix) + mix.output * self.token_seconds(mix.context))


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one replica carries: requests per second at the knee, the engine-seconds of a request, and what bounds it."""

    requests_per_second: float
    work_seconds: float
    bound: Bound

    @property
    def busy(self) -> float:
        """Engine-seconds per second at the knee."""
        return self.requests_per_second * self.work_seconds


def knee(step: Step, mix: Mix, objectives: Objectives, replicas: float, settings: ScalingSettings) -> Capacity:
    """The largest rate of requests of ``mix`` that one of so many ``replicas`` serves within ``objectives``."""
    work = step.work(mix)
    limits = _Limits(step, mix, work, objectives, max(1.0, replicas), settings)
    low, high = 0.0, 1.0 / work
    bound = Bound.TTFT
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        passed = limits.passed(middle)
        if passed is None:
            low = middle
        else:
            high, bound = middle, passed
    return Capacity(max(low, high / 4, 1e-9), work, bound)


class _Limits:
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
        "_replicas",
        "_room",
        "_settings",
        "_token",
        "_turn_most",
        "_uneven",
        "_work",
    )

    def __init__(
        self, step: Step, mix: Mix, work: float, objectives: Objectives, replicas: float, settings: ScalingSettings
    ) -> None:
        self._base, self._work, self._settings, self._replicas = step.base, work, settings, replicas
        self._batch, self._kv = step.max_sequences, step.kv_tokens
        self._prompt, self._output, self._context = mix.prompt, mix.output, mix.context
        self._uneven = mix.uneven
        self._token = step.token_seconds(mix.context)
        self._chunks = max(mix.computed / step.chunk, 1e-9)
        self._prompt_seconds = step.prompt_seconds(mix)
        self._room, self._miss = objectives.ttft_seconds, objectives.miss
        gaps = objectives.itl_seconds is not None and mix.output >= 2
        # Steps with a chunk are the longest, and short answers get many of them.
        share = settings.itl_share if mix.computed > 0.0 else settings.itl_share_decoding
        self._gap_most = objectives.itl_seconds or math.inf if gaps else math.inf
        self._turn_most = (objectives.itl_seconds or 0.0) * share if gaps else math.inf

    def passed(self, rate: float) -> Bound | None:
        """The bound that ``rate`` passes, if any."""
        turn = self._base / max(1e-9, 1.0 - rate * self._work)
        if turn > self._turn_most:
            return Bound.ITL
        sequences = rate * self._output * turn
        # What may wait for a first token need not fit at once.
        stays = self._output * turn
        patience = stays / (stays + (self._room or 0.0))
        sigmas = self._settings.crowd_sigmas * math.sqrt(patience / max(1.0, sequences * self._replicas))
        room = 1.0 + sigmas
        if sequences * room > self._batch:
            return Bound.BATCH
        full = self._base + sequences * self._token + self._prompt_seconds / max(1.0, self._chunks)
        service = max(1.0, self._chunks) * full
        # A prompt that is being computed is resident too, half of it on average.
        if self._hurts(rate * max(1.0, self._chunks) * turn, self._base + sequences * self._token, full):
            return Bound.ITL
        resident = sequences * self._context + rate * service * self._prompt / 2
        room = 1.0 + sigmas * math.sqrt(_SHOT)
        if resident * room > self._kv:
            return Bound.KV
        return Bound.TTFT if self._waits(rate * self._chunks * full, service) else None

    def _hurts(self, busy: float, plain: float, full: float) -> bool:
        """Do more answers see mostly steps with a chunk than may, where such a step passes the objective? ``busy`` is their
        share."""
        if full <= self._gap_most or busy <= 0.0:
            return False
        within = (self._gap_most - plain) / (full - plain)
        if within <= 0.0 or busy >= 1.0:
            return True
        chunks = max(1.0, self._chunks * (1.0 + self._uneven))
        short = -math.expm1(-chunks / (1.0 - busy) / within / self._output)
        whole = max(1.0, chunks / _MANY_CHUNKS)
        more = min(_SHORTER, whole * whole)
        return busy * short * more > self._miss * self._settings.hurt_share

    def _waits(self, busy: float, service: float) -> bool:
        """Do more prompts wait past the objective than may?"""
        if busy >= self._settings.prefill_busy_most:
            return True
        if self._room is None or busy <= 0.0:
            return False
        room = self._room - service
        if room <= 0.0:  # no load lets it be met: what is left is not to make it much worse
            return busy > 0.5
        return (
            busy * math.exp(-self._replicas * (1.0 - busy) * room / (service * (1.0 + self._uneven) / 2)) > self._miss
        )
