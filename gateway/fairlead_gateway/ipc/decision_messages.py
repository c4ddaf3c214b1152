"""Decisions, as they go from workers to their supervisor and to Redis."""

import msgspec


class EncodedDecision(msgspec.Struct, array_like=True):
    """An encoded `Decision`."""

    chosen: str | None
    rule: str
    reason: str
    rejected: list[tuple[str, str]]
    inputs: dict[str, tuple[float | None, float | None]]
    cost_seconds: float | None


class EncodedPrefillAttempt(msgspec.Struct, array_like=True):
    """An encoded `PrefillAttempt`."""

    instance_id: str
    decision: EncodedDecision
    started_at: float
    seconds: float | None
    result: str


class EncodedHandoff(msgspec.Struct, array_like=True):
    """An encoded `HandoffRecord`."""

    outcome: str
    reason: str
    message: str
    waited_seconds: float
    attempts: list[EncodedPrefillAttempt]
    placement: EncodedDecision | None


class EncodedRoute(msgspec.Struct, array_like=True):
    """An encoded `RouteDecision`."""

    name: str
    route: str
    target: str | None
    basis: str
    override: int | None
    weights: tuple[int, int]
    changes: list[str] = []
    steps: list[tuple[str, str, str, str]] = []
    withheld: list[str] = []
    shadow: str | None = None
    context_tokens: int = 0


class EncodedDecisionRecord(msgspec.Struct, array_like=True):
    """An encoded `DecisionRecord`."""

    request_id: str
    wall: float
    model_key: str
    decision: EncodedDecision
    attempt: int
    prompt_tokens: float
    caller: str | None
    handoff: EncodedHandoff | None
    route: EncodedRoute | None = None
    kept_back: list[str] = []


class EncodedLoggedRequest(msgspec.Struct, array_like=True):
    """An encoded `LoggedRequest`; `outcome` has the outcome's fields by name."""

    records: list[EncodedDecisionRecord]
    outcome: dict[str, object] | None
