"""With one caller, fairness changes nothing: order, refusals and reasons are recorded ones.

The digests were recorded before callers were distinguished in the queue.
"""

import random
from dataclasses import replace
from hashlib import sha256

from fairlead.limits import Limits
from fairlead_gateway.admission.admission_policy import AdmissionPolicy, AdmissionRequest, AdmissionVerdict
from fairlead_gateway.admission.kv_capacity import EngineLoad
from fairlead_gateway.admission.request_queue import RequestQueue
from fairlead_testing.gateway.caller_overload import admission_request


def draw_request(draw: random.Random, name: str, now: float) -> AdmissionRequest:
    request = admission_request(
        name,
        now,
        draw.choice([0.25, 1.0, 5.0]),
        draw.choice([0.01, 0.1, 0.6]),
        tier=draw.choice([0, 0, 1, 2]),
        tenant="only",
        program_started_at=draw.choice([None, now - 20.0]),
        is_long=draw.random() < 0.2,
        body_bytes=draw.randint(1, 40),
        length_class="only",
    )
    request.sheddable = request.tier == 2
    return request


def queue_trace(seed: int) -> list[str]:
    draw, queue, now, lines = random.Random(seed), RequestQueue(), 0.0, []
    for number in range(400):
        now += draw.expovariate(8.0)
        queue.add(draw_request(draw, f"r{number}", now))
        if draw.random() < 0.15:
            lines.append(f"remove {queue.remove(f'r{draw.randint(0, number)}')}")
        closed = draw.choice([(), (), (True,)])
        turn = queue.peek(now, closed)
        if turn is not None and draw.random() < 0.7:
            queue.take(turn)
            lines.append(f"{turn.request.id} {turn.rule} {turn.reason}")
    while (turn := queue.peek(now)) is not None:
        now += 0.1
        queue.take(turn)
        lines.append(f"{turn.request.id} {turn.rule} {turn.reason}")
    return lines


def policy_trace(seed: int) -> list[str]:
    draw, now, lines = random.Random(seed), 0.0, []
    policy = AdmissionPolicy(replace(Limits(), queued_requests=12, queued_bytes=200, queue_seconds=15.0))
    for number in range(500):
        now += draw.expovariate(10.0)
        request = draw_request(draw, f"r{number}", now)
        engines = [EngineLoad(f"e{n}", draw.choice([0.0, 2.0, 2.0, 2.0, 2.0]), 0.3, None) for n in range(3)]
        lines.append(describe(policy.admit(request, engines, now)))
        lines += [f"{name} {describe(verdict)}" for name, verdict in policy.take_expired(3, now)]
        released = policy.release_next(engines, now)
        if released is not None:
            lines.append(f"{released.id} {released.describe()} {sorted(released.full_instances)}")
    return lines


def describe(verdict: AdmissionVerdict) -> str:
    full = sorted(verdict.full_instances)
    return f"{verdict.action} {verdict.rule} {verdict.reason} {full} {verdict.retry_after} {verdict.is_shed}"


def digest(lines: list[str]) -> str:
    return sha256("\n".join(lines).encode()).hexdigest()[:16]


def test_with_one_caller_the_order_of_the_queue_is_the_recorded_one() -> None:
    assert digest([line for seed in range(20) for line in queue_trace(seed)]) == "7200260bdc8c14ad"


def test_with_one_caller_every_admission_is_the_recorded_one() -> None:
    assert digest([line for seed in range(20) for line in policy_trace(seed)]) == "6ed5649ac07d33f9"
