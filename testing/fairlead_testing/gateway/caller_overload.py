"""Admission under overload: one engine, and callers that send at fixed rates, in simulated time."""

import heapq
from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

from fairlead.limits import Limits
from fairlead_gateway.admission.admission_policy import AdmissionAction, AdmissionPolicy, AdmissionRequest
from fairlead_gateway.admission.kv_capacity import EngineLoad
from fairlead_gateway.admission.request_queue import QueuedRequest
from fairlead_gateway.routing import PrefixChain, RouteRequest

SERVICE_SECONDS = 1.0

_Request = TypeVar("_Request", bound=QueuedRequest)
SERVICE_SECONDS = 1.0
_OBJECTIVE_SECONDS = 5.0


def queued_request(
    name: str, arrival: float = 0.0, objective: float = 1.0, prefill: float = 0.1, **fields: object
) -> QueuedRequest:
    return _with_fields(QueuedRequest(name, arrival, objective, prefill), fields)


def admission_request(
    name: str, arrival: float = 0.0, objective: float = 1.0, prefill: float = 0.1, **fields: object
) -> AdmissionRequest:
    """Returns the same with a prompt of `tokens`, and at most `most` tokens of answer."""
    tokens, most = float(fields.pop("tokens", 100.0)), fields.pop("most", None)  # type: ignore[arg-type]
    route = RouteRequest(name, PrefixChain((), (), hash(name)), tokens, most)  # type: ignore[arg-type]
    return _with_fields(AdmissionRequest(route, arrival, objective, prefill, tokens), fields)


def _with_fields(request: _Request, fields: Mapping[str, object]) -> _Request:
    for name, value in fields.items():
        setattr(request, name, value)
    return request


class CallerOverload:
    """One engine that serves a request per second, before it callers with fixed rates.

    rates: requests a second of each caller.
    served, lost: requests by caller. waits: seconds in the queue of the served ones.
    """

    def __init__(self, limits: Limits, rates: Mapping[str, float], *, body_bytes: int = 100) -> None:
        self.policy = AdmissionPolicy(limits)
        self.body_bytes = body_bytes
        self.served: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.waits: dict[str, list[float]] = {caller: [] for caller in rates}
        self._busy_until = 0.0
        self._arrivals = [(1.0 / rate, caller, 1.0 / rate) for caller, rate in rates.items()]
        heapq.heapify(self._arrivals)
        self._number = 0

    def run(self, seconds: float) -> None:
        """Simulates until `seconds` after the start."""
        while (now := min(self._arrivals[0][0], self._busy_until if len(self.policy) else float("inf"))) < seconds:
            if now >= self._busy_until:
                self._release(now)
            if self._arrivals[0][0] <= now:
                at, caller, pause = heapq.heappop(self._arrivals)
                heapq.heappush(self._arrivals, (at + pause, caller, pause))
                self._arrive(caller, now)

    def lost_share(self, caller: str) -> float:
        return self.lost[caller] / (self.lost[caller] + self.served[caller])

    def _engines(self, now: float) -> list[EngineLoad]:
        return [EngineLoad("e", max(0.0, self._busy_until - now), SERVICE_SECONDS, None)]

    def _arrive(self, caller: str, now: float) -> None:
        self._number += 1
        name = f"{caller}/{self._number}"
        request = admission_request(
            name, now, _OBJECTIVE_SECONDS, SERVICE_SECONDS, tenant=caller, body_bytes=self.body_bytes
        )
        verdict = self.policy.admit(request, self._engines(now), now)
        for displaced, _ in verdict.displaced:
            self.lost[displaced.partition("/")[0]] += 1
        if verdict.action is AdmissionAction.REFUSE:
            self.lost[caller] += 1
        elif verdict.action is AdmissionAction.ADMIT:
            self._serve(name, 0.0, now)

    def _release(self, now: float) -> None:
        for name, _ in self.policy.take_expired(1, now):
            self.lost[name.partition("/")[0]] += 1
        released = self.policy.release_next(self._engines(now), now)
        if released is not None:
            self._serve(released.id, released.waited_seconds, now)

    def _serve(self, name: str, waited: float, now: float) -> None:
        caller = name.partition("/")[0]
        self.served[caller] += 1
        self.waits[caller].append(waited)
        self._busy_until = max(self._busy_until, now) + SERVICE_SECONDS
