"""An engine's profile, learned from what its requests took.

A span (``spans``) is an equation in the coefficients of the profile (``fairlead.engine_profile``): so many steps of
``d``, so many that only
read the weights (``w``), so many computed tokens (``p``), sequences (``s``), resident tokens (``c``), pairs (``q``) and hits
(``h``) took so many seconds together. The coefficients are those that explain the spans of the last while best, by least squares
of the error as a share of what was predicted, none below zero.

1. Unknowns are factors on the prior's coefficients (1 = as assumed), so all have one scale. What the prior has as zero stays zero.
2. Each equation is divided by what is predicted of its seconds. Divided by the seconds themselves, one that was measured at a
   hundredth of its time weighs ten thousand times as much as the others, and where times scatter all is learned too low (by a
   seventh at 30 %). One that is off by more than ``WILD`` of what was predicted counts for less in proportion, so a stalled engine
   or a lost minute does not become its profile.
3. What was seen is forgotten by a half-life in time and by count; nothing but the two sums of least squares is kept.
4. Directions that traffic does not show (all prompts alike, say) are held by a pull to the last answer, worth ``PULL`` equations.
5. A step of computing costs max(w, p·tokens): an equation counts its steps as bound by weights or by tokens by the
   coefficients as they are at that moment, and settles as they do.
6. No coefficient moves by more than a factor of two at a time, nor ever beyond ``FARTHEST`` of the prior: an engine that seems
   to answer in no time is a broken clock, not a fast engine. A computed token always costs something, where long prompts' attention
   explains all of it, too.

Sources: recursive least squares with forgetting as in FlowPrefill's and LAPS' fitted coefficients (arXiv 2601.11589); ours are the
runs, answers' spans beside prompts' (they tell decoding from computing), and the pull to the last answer instead of to nothing.
"""

from dataclasses import dataclass, field, replace
from typing import Final

from fairlead.engine_profile import EngineProfile
from fairlead_gateway.supervisor.profiling.observations import Observation

HALF_LIFE_SECONDS: Final = 300.0
HALF_LIFE_OBSERVATIONS: Final = 400.0
OUTLIER_ERROR: Final = 0.6
MIN_PREDICTED_SHARE: Final = 0.1
"""Of its seconds: an equation of which less is predicted counts as if it were so much."""
PULL_WEIGHT: Final = 0.002
MAX_FACTOR: Final = 64.0
MAX_FACTOR_STEP: Final = 2.0
SATURATED_SHARE: Final = 0.8
MIN_FACTOR: Final = 0.02
MIN_OBSERVATIONS: Final = 30.0
"""Below so many spans, the prior stands."""

_D, _W, _P, _S, _C, _Q, _H = range(7)
_FIELDS: Final = (
    "step_seconds",
    "weights_seconds",
    "prefill_token_seconds",
    "sequence_seconds",
    "resident_token_seconds",
    "attention_seconds",
    "hit_token_seconds",
)
_DEFAULT_SCALES: Final = (1.5e-3, 5.5e-3, 3.6e-5, 2e-5, 4.9e-8, 1.2e-9, 2e-7)
"""What a coefficient is counted in whose prior is zero."""
_SOLVER_ROUNDS: Final = 60


def _zero_matrix() -> list[list[float]]:
    return [[0.0] * len(_FIELDS) for _ in _FIELDS]


@dataclass(slots=True)
class ProfileRegression:
    """What is known of one kind of engine (a model on an accelerator). ``factors`` are on ``prior``'s coefficients."""

    prior: EngineProfile
    factors: list[float] = field(default_factory=list)
    observations: float = 0.0  # how many still count
    error: float | None = (
        None  # mean relative error of predictions before they were learned from; None before the first
    )
    at: float | None = None
    _products: list[list[float]] = field(default_factory=_zero_matrix)
    _targets: list[float] = field(default_factory=lambda: [0.0] * len(_FIELDS))
    _scales: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        given = [float(getattr(self.prior, name)) for name in _FIELDS]
        self._scales = [value or usual for value, usual in zip(given, _DEFAULT_SCALES, strict=True)]
        self.factors = [1.0 if value else 0.0 for value in given]

    def add(self, observation: Observation, now: float) -> None:
        """Take one span in; ``now`` in seconds of any clock that does not go back."""
        row = self._equation(observation)
        if row is None:
            return
        predicted = sum(value * factor for value, factor in zip(row, self.factors, strict=True))
        off = abs(1.0 - predicted)
        scale = 1.0 / max(predicted, MIN_PREDICTED_SHARE)
        row = [value * scale for value in row]
        wild = abs(scale - 1.0)
        weight = 1.0 if wild <= OUTLIER_ERROR or self.observations < MIN_OBSERVATIONS else OUTLIER_ERROR / wild
        if observation.is_cache_assumed:
            weight *= 0.5
        passed = 0.0 if self.at is None else max(0.0, now - self.at)
        kept = 0.5 ** (passed / HALF_LIFE_SECONDS + 1.0 / HALF_LIFE_OBSERVATIONS)
        self.at = now if self.at is None else max(self.at, now)
        self.error = off if self.error is None else self.error + 0.05 * (min(off, 4.0) - self.error)
        self.observations = self.observations * kept + weight
        products, targets = self._products, self._targets
        for one, value in enumerate(row):
            line = products[one]
            for other, second in enumerate(row):
                line[other] = line[other] * kept + weight * value * second
            targets[one] = targets[one] * kept + weight * value * scale

    def predicted_share(self, observation: Observation) -> float | None:
        """What the profile says that the span should have taken, as a share of what it took; None where it says nothing."""
        row = self._equation(observation)
        return None if row is None else sum(value * factor for value, factor in zip(row, self.factors, strict=True))

    def solve(self) -> EngineProfile:
        """Solve for the factors, and the profile with them. Call it every few seconds; each call moves a factor by two at most."""
        if self.observations < MIN_OBSERVATIONS:
            return self.profile()
        factors = list(self.factors)
        for _ in range(_SOLVER_ROUNDS):
            for one, line in enumerate(self._products):
                rest = (
                    sum(value * factor for value, factor in zip(line, factors, strict=True)) - line[one] * factors[one]
                )
                pull = PULL_WEIGHT
                factors[one] = max(0.0, (self._targets[one] - rest + pull * self.factors[one]) / (line[one] + pull))
        self.factors = [
            min(
                max(new, old / MAX_FACTOR_STEP if old > MIN_FACTOR else 0.0),
                max(old * MAX_FACTOR_STEP, 1.0),
                MAX_FACTOR,
            )
            for new, old in zip(factors, self.factors, strict=True)
        ]
        self.factors[_P] = max(self.factors[_P], 1.0 / MAX_FACTOR)
        return self.profile()

    def profile(self) -> EngineProfile:
        """The profile as it is believed now."""
        step, weights, token, sequence, resident, attention, hit = (
            scale * factor for scale, factor in zip(self._scales, self.factors, strict=True)
        )
        return replace(
            self.prior,
            step_seconds=step,
            weights_seconds=weights,
            prefill_token_seconds=token,
            sequence_seconds=sequence,
            resident_token_seconds=resident,
            attention_seconds=attention,
            hit_token_seconds=hit,
        )

    def _is_saturated(self, observation: Observation) -> bool:
        """Whether prompts waited for room rather than for their turn: their time says nothing of computing."""
        prior = self.prior
        return (
            observation.peak_tokens > SATURATED_SHARE * prior.kv_tokens
            or observation.peak_sequences > SATURATED_SHARE * prior.max_sequences
        )

    def _equation(self, observation: Observation) -> list[float] | None:
        """The span's seconds by coefficient, for factors of one, as shares of its seconds; None where it says nothing."""
        if observation.seconds <= 0.0 or (observation.steps is None and self._is_saturated(observation)):
            return None
        factors, work = self.factors, observation.work
        token = self._scales[_P] * factors[_P]
        bound = (
            self._scales[_W] * factors[_W] / token if token > 0.0 else 0.0
        )  # tokens that take as long as the weights
        if observation.steps is None:
            computing = max(1.0, work.steps)
            reading = (
                0.5 if observation.began_mid_step else 0.0
            )  # steps that only decode; on average half of one is still to be waited for
        else:
            computing = min(max(1.0, observation.steps), work.steps)
            reading = max(1.0, observation.steps) - computing
        steps = computing + reading
        tokens = work.computed + observation.sequences * computing
        by_tokens = by_weights = 0.0
        if computing and tokens >= bound * computing:
            by_tokens += tokens
        else:
            by_weights += computing
        if observation.sequences >= bound:
            by_tokens += observation.sequences * reading
        else:
            by_weights += reading
        amounts = (
            steps,
            by_weights,
            by_tokens,
            steps * (observation.sequences + (1.0 if observation.steps is None else 0.0)),
            observation.resident * steps,
            work.attention,
            work.cached,
        )
        return [amount * scale / observation.seconds for amount, scale in zip(amounts, self._scales, strict=True)]
