"""What a replica carries: the requests per second at the knee of its objectives, from what a step costs.

A replica that gets r requests per second of ``prompt`` tokens to compute and ``output`` tokens to generate works in steps. In each,
every running sequence gets a token, and prompts that arrived meanwhile are computed. With a step of T seconds there are B =
r·output·T sequences running with ``context`` = prompt + output / 2 tokens each, and r·prompt·T prompt tokens a step. So

    T = a + b·B + c·context·B + d·r·prompt·T     that is     T = a / (1 - r·w),   w = d·prompt + output·(b + c·context)

``w`` is what a request costs in engine-seconds, r·w the share of its time that the replica spends on what was asked rather than on
turning over, and r·w -> 1 its saturation. The knee is the largest r at which all of these hold:

- a step, seen by a request as the gap between its tokens, is within the objective (less some room for steps that carry a chunk);
- the sequences fit the batch, and their tokens the KV memory;
- prompts do not queue past the objective for the first token: one is computed in S = prompt / chunk steps that carry a full chunk,
  so the share of time in prompts is r·S, and of one queue with exponential work P(wait > x) = r·S·exp(-(1 - r·S)·x / S), which
  must not exceed the share of requests that may miss.

Work per second divided by ``w`` and by r is how many replicas a load needs. The step model is that of papers.md F1, the use of it
as unit of scaling TokenScale's and Dynamo's; what differs is that all bounds are taken at once, at the mix that is seen, with the
speed that is seen."""

import math
from dataclasses import dataclass
from enum import StrEnum

from fairlead.profile import EngineProfile
from fairlead_autoscaler.scaling.settings import ScalingSettings

_HALVINGS = 24


class Bound(StrEnum):
    """What ends a replica's capacity."""

    ITL = "inter-token objective"
    BATCH = "batch"
    KV = "KV memory"
    TTFT = "first-token objective"


@dataclass(frozen=True, slots=True)
class Mix:
    """A mean request: prompt tokens, the share of these that caches hold, and tokens generated."""

    prompt: float
    output: float
    cached: float = 0.0

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


def knee(step: Step, mix: Mix, objectives: Objectives, settings: ScalingSettings) -> Capacity:
    """The largest rate of requests of ``mix`` that one replica serves within ``objectives``."""
    work = step.work(mix)
    low, high = 0.0, 1.0 / work
    bound = Bound.TTFT
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        passed = _passed(middle, step, mix, work, objectives, settings)
        if passed is None:
            low = middle
        else:
            high, bound = middle, passed
    return Capacity(max(low, high / 4, 1e-9), work, bound)


def _passed(
    rate: float, step: Step, mix: Mix, work: float, objectives: Objectives, settings: ScalingSettings
) -> Bound | None:
    """The bound that ``rate`` passes, if any."""
    turn = step.base / max(1e-9, 1.0 - rate * work)
    if objectives.itl_seconds is not None and mix.output >= 2 and turn > objectives.itl_seconds * settings.itl_share:
        return Bound.ITL
    batch = rate * mix.output * turn
    if batch > step.max_sequences * settings.batch_share:
        return Bound.BATCH
    # A prompt that is being computed is resident too, half of it on average.
    chunks = max(mix.computed / step.chunk, 1e-9)
    full = step.base + batch * step.token_seconds(mix.context) + step.prompt_seconds(mix) / max(1.0, chunks)
    service = max(1.0, chunks) * full
    if batch * mix.context + rate * service * mix.prompt / 2 > step.kv_tokens * settings.kv_share:
        return Bound.KV
    return Bound.TTFT if _waits(rate, chunks * full, service, objectives, settings) else None


def _waits(rate: float, shared: float, service: float, objectives: Objectives, settings: ScalingSettings) -> bool:
    """Do more prompts wait past the objective than may? ``shared`` is the engine time of a prompt where others share its chunks."""
    busy = rate * shared
    if busy >= settings.prefill_busy_most:
        return True
    if objectives.ttft_seconds is None or busy <= 0.0:
        return False
    room = objectives.ttft_seconds - service
    if room <= 0.0:  # no load lets it be met: what is left is not to make it much worse
        return busy > 0.5
    return busy * math.exp(-(1.0 - busy) * room / service) > objectives.miss
