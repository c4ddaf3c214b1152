"""Pairs that failed: for whom they are avoided, and for how long."""

import asyncio

from fairlead.fleet.model import Instance, Role
from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_gateway.caller_key import ANONYMOUS, CallerKey
from fairlead_gateway.disaggregation.worker.prefill_coordinator import PairHealth
from fairlead_gateway.runtime import WorkerRuntime

FLOOD, STEADY, OTHER = CallerKey("flood"), CallerKey("steady"), CallerKey("other")
PREFILL, DECODE = (
    Instance(role.value, "default", "tiny", role.value, "http://127.0.0.1:1", role=role, transfer="nixl")
    for role in (Role.PREFILL, Role.DECODE)
)


class Scene:
    def __init__(self) -> None:
        self.clock = ManualClock()
        loop = asyncio.new_event_loop()
        self.health = PairHealth(WorkerRuntime(self.clock, Limits(handoff_suspect_seconds=30.0), loop))
        loop.close()

    def avoids_prefill(self, caller: CallerKey) -> bool:
        return bool(self.health.unusable_prefills({PREFILL.id: PREFILL}, [DECODE], caller))


def test_failing_prefills_of_one_caller_leave_the_instance_to_others() -> None:
    scene = Scene()
    for _ in range(20):
        scene.health.mark_suspect(PREFILL.id, None, FLOOD)
    assert scene.avoids_prefill(FLOOD)
    assert not scene.avoids_prefill(STEADY)
    scene.clock.advance(30.0)
    assert not scene.avoids_prefill(FLOOD)


def test_failing_hand_offs_of_one_caller_leave_the_pair_to_others() -> None:
    scene = Scene()
    scene.health.mark_suspect(PREFILL.id, DECODE.id, FLOOD)
    assert not scene.health.is_usable(PREFILL, DECODE, FLOOD)
    assert scene.health.is_usable(PREFILL, DECODE, STEADY)
    assert scene.avoids_prefill(FLOOD)  # its only pair is suspect
    assert not scene.avoids_prefill(STEADY)


def test_failures_of_a_second_caller_make_the_pair_suspect_for_all() -> None:
    scene = Scene()
    scene.health.mark_suspect(PREFILL.id, None, FLOOD)
    scene.clock.advance(29.0)
    scene.health.mark_suspect(PREFILL.id, None, STEADY)
    assert scene.avoids_prefill(OTHER)
    scene.clock.advance(30.0)
    assert not scene.avoids_prefill(OTHER)


def test_failures_of_two_callers_far_apart_do_not_add_up() -> None:
    scene = Scene()
    scene.health.mark_suspect(PREFILL.id, None, FLOOD)
    scene.clock.advance(30.0)
    scene.health.mark_suspect(PREFILL.id, None, STEADY)
    assert not scene.avoids_prefill(OTHER)


def test_failure_that_depends_on_no_request_or_of_the_only_caller_counts_at_once() -> None:
    refused, alone = Scene(), Scene()
    refused.health.mark_suspect(PREFILL.id)
    assert refused.avoids_prefill(STEADY)
    alone.health.mark_suspect(PREFILL.id, None, ANONYMOUS)
    assert alone.avoids_prefill(ANONYMOUS)
