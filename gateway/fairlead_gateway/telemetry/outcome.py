"""The outcome of one request, from which metrics, decision log and trace are made."""

from dataclasses import dataclass
from typing import Final

from fairlead.fleet.model import SloTargets

ENGINE_REFUSED: Final = "engine-refused"


@dataclass(slots=True)
class RequestOutcome:
    """The outcome of one request. None is "unknown", never zero.

    The constructor takes what every outcome has; callers set the other fields.

    - status: what the client received, or would have received.
    - error: the failure in one word.
    - within_objective: None if the model has no SLO; `within_ttft` and `within_itl` are its
      two parts.
    - overhead_seconds: the gateway's own time, from the request's last byte to its dispatch,
      without waits in queues and prefill elsewhere. None after a failed attempt.
    - queued_seconds: waits in queues of the gateway for an engine, in all attempts.
    - failures: (instance, reason) of attempts before the last one.
    """

    request_id: str
    model_key: str
    instance_id: str | None
    status: int
    error: str | None
    started_wall: float
    duration_seconds: float
    ttft_seconds: float | None
    itl_mean_seconds: float | None
    prompt_tokens: int | None
    cached_tokens: int | None
    predicted_cached_tokens: int | None
    output_tokens: int | None
    within_objective: bool | None
    attempts: int
    client_disconnected: bool
    within_ttft: bool | None
    within_itl: bool | None
    overhead_seconds: float | None
    queued_seconds: float
    failures: tuple[tuple[str, str], ...]

    def __init__(
        self,
        request_id: str,
        model_key: str,
        instance_id: str | None,
        status: int,
        error: str | None,
        started_wall: float,
        duration_seconds: float,
    ) -> None:
        self.request_id = request_id
        self.model_key = model_key
        self.instance_id = instance_id
        self.status = status
        self.error = error
        self.started_wall = started_wall
        self.duration_seconds = duration_seconds
        self.ttft_seconds = None
        self.itl_mean_seconds = None
        self.prompt_tokens = None
        self.cached_tokens = None
        self.predicted_cached_tokens = None
        self.output_tokens = None
        self.within_objective = None
        self.attempts = 1
        self.client_disconnected = False
        self.within_ttft = None
        self.within_itl = None
        self.overhead_seconds = None
        self.queued_seconds = 0.0
        self.failures = ()


def is_client_fault(outcome: RequestOutcome) -> bool:
    """Whether the engine refused the request (4xx), as it would at every instance."""
    return outcome.error == ENGINE_REFUSED and 400 <= outcome.status < 500


@dataclass(slots=True)
class Attainment:
    """The attainment of the latency targets by one request; None where there is no target.

    - itl: also None for a complete answer of one token.
    - both: True if no target was missed.
    """

    ttft: bool | None
    itl: bool | None
    both: bool | None

    def __init__(self, ttft: bool | None, itl: bool | None, both: bool | None) -> None:
        self.ttft = ttft
        self.itl = itl
        self.both = both


_NO_OBJECTIVE: Final = Attainment(None, None, None)


def assess_attainment(
    objectives: SloTargets,
    *,
    prompt_tokens: float | None,
    ttft_seconds: float | None,
    itl_mean_seconds: float | None,
    failed: bool,
) -> Attainment:
    """Returns which of its latency targets a request met.

    A failed request misses all of them.
    """
    if objectives.ttft_seconds is None and objectives.itl_seconds is None:
        return _NO_OBJECTIVE
    limit = objectives.ttft_limit_seconds(prompt_tokens or 0.0)
    ttft = None if limit is None else (not failed and ttft_seconds is not None and ttft_seconds <= limit)
    if objectives.itl_seconds is None or (itl_mean_seconds is None and not failed):
        itl = None
    else:
        itl = not failed and itl_mean_seconds is not None and itl_mean_seconds <= objectives.itl_seconds
    both = None if ttft is None and itl is None else ttft is not False and itl is not False
    return Attainment(ttft, itl, both)


class ShadowAnswer:
    """An answer to a request that was copied: by the model that was asked, or by its shadow.

    failed: it is no whole answer.
    ttft_seconds, tpot_seconds: from the dispatch to the engine; None for an answer without a
        stream.
    output_tokens: None if the engine reported none.
    """

    __slots__ = ("failed", "output_tokens", "tpot_seconds", "ttft_seconds")

    def __init__(
        self, failed: bool, ttft_seconds: float | None, tpot_seconds: float | None, output_tokens: int | None
    ) -> None:
        self.failed = failed
        self.ttft_seconds = ttft_seconds
        self.tpot_seconds = tpot_seconds
        self.output_tokens = output_tokens


SHADOW_SIDES: Final = ("copy", "original")
COMPARED: Final = "compared"
"""The number of requests that both models have answered, or failed."""

SHADOW_NAMES: Final = 12
"""The number of names of sums in a comparison."""


def shadow_sums(copy: ShadowAnswer, original: ShadowAnswer) -> dict[str, int]:
    """Returns what a pair of answers adds to the sums of a comparison, by name.

    A value counts only if both answers have it. So the means are of the same requests. Times are in
    microseconds: integers of several processes add up exactly.
    """
    found = {COMPARED: 1}
    for side, answer in zip(SHADOW_SIDES, (copy, original), strict=True):
        found[f"errors:{side}"] = int(answer.failed)
    if copy.failed or original.failed:
        return found
    for name, first, second in (
        ("ttft", _microseconds(copy.ttft_seconds), _microseconds(original.ttft_seconds)),
        ("tpot", _microseconds(copy.tpot_seconds), _microseconds(original.tpot_seconds)),
        ("output_tokens", copy.output_tokens, original.output_tokens),
    ):
        if first is not None and second is not None:
            found[name] = 1
            found[f"{name}:copy"] = first
            found[f"{name}:original"] = second
    return found


def _microseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1e6 + 0.5)
