"""Leader election: the decision over a lease, and candidates with a slow or unavailable API server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.leader_election import (
    LeaderElector,
    LeaseAction,
    LeaseCandidate,
    LeaseTiming,
    ObservedLease,
    decide,
    lease_spec,
    observe_lease,
)
from fairlead.kube.resources import LEASES, Manifest
from fairlead.runtime.clock import Pacing
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_testing.kube.fake_server import FakeApiServer, OrderedResponse, fake_api_server
from fairlead_testing.waiting import FakeTime, wait_until

pytestmark = pytest.mark.simulated

TIMING = LeaseTiming()
PATH = "/apis/coordination.k8s.io/v1/namespaces/x/leases/operator"


def observed(holder: str = "other", since: float = 0.0, lease_seconds: float = 15.0) -> ObservedLease:
    return ObservedLease("7", holder, lease_seconds, 3, "2026-01-01T00:00:00.000000Z", since)


@pytest.mark.parametrize(
    ("lease", "now", "act", "reason"),
    [
        (None, 0.0, LeaseAction.CREATE, "there is no lease"),
        (observed("me"), 1000.0, LeaseAction.RENEW, "it is ours"),
        (observed(""), 0.0, LeaseAction.TAKE, "it was given back"),
        (observed(), 14.9, LeaseAction.WAIT, "other holds it"),
        (observed(), 15.0, LeaseAction.TAKE, "other has not renewed it for 15.0 s"),
        (observed(lease_seconds=1.0, since=14.5), 15.0, LeaseAction.WAIT, "other holds it"),
        (observed(since=100.0), 110.0, LeaseAction.WAIT, "other holds it"),
    ],
)
def test_decision_table(lease: ObservedLease | None, now: float, act: LeaseAction, reason: str) -> None:
    step = decide(lease, "me", now)
    assert (step.action, step.reason) == (act, reason)


def test_lease_age_is_measured_by_the_observer() -> None:
    lease: Manifest = {
        "metadata": {"resourceVersion": "1"},
        "spec": {"holderIdentity": "o", "leaseDurationSeconds": 15},
    }
    first = observe_lease(lease, None, 10.0)
    assert (first.observed_at, first.lease_seconds) == (10.0, 15.0)
    assert observe_lease(lease, first, 20.0) == first
    lease["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z"
    assert observe_lease(lease, first, 20.0) == first  # what its holder's clock says does not matter
    lease["metadata"]["resourceVersion"] = "2"
    assert observe_lease(lease, first, 20.0).observed_at == 20.0
    assert observe_lease({"metadata": {"resourceVersion": "1"}}, None, 0.0).lease_seconds == TIMING.lease_seconds


def test_renewal_keeps_acquire_time_and_takeover_counts() -> None:
    renewed = lease_spec(observed("me"), "me", TIMING, 1_800_000_000.0)
    assert renewed["acquireTime"] == "2026-01-01T00:00:00.000000Z"
    assert (renewed["renewTime"], renewed["leaseTransitions"]) == ("2027-01-15T08:00:00.000000Z", 3)
    taken = lease_spec(observed(), "me", TIMING, 1_800_000_000.0)
    assert (taken["holderIdentity"], taken["leaseTransitions"]) == ("me", 4)
    assert taken["acquireTime"] == taken["renewTime"] == "2027-01-15T08:00:00.000000Z"
    assert lease_spec(None, "me", TIMING, 0.0)["leaseTransitions"] == 0


def test_timing_that_allows_two_leaders_is_refused() -> None:
    with pytest.raises(ValueError, match="lease_seconds > renew_seconds"):
        LeaseTiming(lease_seconds=10.0, renew_seconds=10.0)


# --- candidates ---------------------------------------------------------------------------------------------------------


class ElectionHarness:
    """An API server and candidates, in one time."""

    def __init__(self, fake: FakeApiServer) -> None:
        self.fake = fake
        self.time = FakeTime()
        self.apis: list[KubeApi] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.lost: dict[str, str] = {}

    def candidate(self, me: str) -> LeaderElector:
        api = KubeApi(self.fake.config(), self.time, lambda: 0.0, pause=self.time.pause)
        self.apis.append(api)
        election = LeaderElector(
            api, LeaseCandidate("x", "operator", me), Pacing(self.time, lambda: 0.0, self.time.pause)
        )

        async def run() -> None:
            await election.acquire()
            self.lost[me] = await election.hold()

        self.tasks.append(asyncio.create_task(run()))
        return election

    async def passing(self, condition: Callable[[], bool], seconds: float = 0.5) -> None:
        """Advances time in small steps until `condition` holds, so that no request is left behind."""

        def is_over() -> bool:
            if condition():
                return True
            self.time.advance(seconds)
            return False

        await wait_until(is_over)

    @property
    def holder(self) -> str:
        return str(self.fake.objects[PATH]["spec"]["holderIdentity"])


@asynccontextmanager
async def election_harness() -> AsyncIterator[ElectionHarness]:
    async with fake_api_server() as fake:
        lab = ElectionHarness(fake)
        try:
            yield lab
        finally:
            for task in lab.tasks:
                await cancel_and_wait(task)
            for api in lab.apis:
                await api.close()


async def test_one_candidate_leads_and_the_other_waits() -> None:
    async with election_harness() as lab:
        leader = lab.candidate("one")
        await wait_until(lambda: leader.is_leading)
        two = lab.candidate("two")
        await wait_until(lambda: two.reason == "one holds it")
        first = lab.fake.objects[PATH]["metadata"]["resourceVersion"]
        await lab.passing(lambda: int(lab.fake.objects[PATH]["metadata"]["resourceVersion"]) > int(first) + 3)
        assert (leader.is_leading, two.is_leading, two.holder) == (True, False, "one")
        assert lab.fake.objects[PATH]["spec"]["leaseTransitions"] == 0


async def test_released_lease_is_taken_at_once() -> None:
    async with election_harness() as lab:
        leader = lab.candidate("one")
        await wait_until(lambda: leader.is_leading)
        two = lab.candidate("two")
        await wait_until(lambda: two.reason == "one holds it")
        await cancel_and_wait(lab.tasks[0])
        await leader.release()
        assert (leader.is_leading, lab.holder) == (False, "")
        before = lab.time.now()
        await lab.passing(lambda: two.is_leading)
        assert lab.time.now() - before < TIMING.lease_seconds
        assert lab.holder == "two"


async def test_lease_of_a_dead_leader_is_taken_after_it_expires() -> None:
    async with election_harness() as lab:
        leader = lab.candidate("one")
        await wait_until(lambda: leader.is_leading)
        await cancel_and_wait(lab.tasks[0])
        two = lab.candidate("two")
        await wait_until(lambda: two.reason == "one holds it")
        before = lab.time.now()
        await lab.passing(lambda: two.is_leading)
        assert lab.time.now() - before >= TIMING.lease_seconds
        assert not leader.is_leading  # by its own clock, without a request
        assert "one has not renewed it" in two.reason


@pytest.mark.parametrize(
    "order", [OrderedResponse(503, message="etcd is away"), OrderedResponse(reset=True), OrderedResponse(mute=True)]
)
async def test_unreachable_api_server_ends_leadership_in_time(order: OrderedResponse) -> None:
    async with election_harness() as lab:
        leader = lab.candidate("one")
        await wait_until(lambda: leader.is_leading)
        lab.fake.ordered_responses.extend([order] * 1000)
        began = lab.time.now()
        await lab.passing(lambda: "one" in lab.lost)
        assert not leader.is_leading
        assert lab.time.now() - began < TIMING.lease_seconds
        lab.fake.ordered_responses.clear()
        await leader.acquire()
        assert leader.is_leading


async def test_lost_response_does_not_lose_the_lease() -> None:
    async with election_harness() as lab:
        leader = lab.candidate("one")
        await wait_until(lambda: leader.is_leading)
        lab.fake.ordered_responses.append(OrderedResponse(503, takes_effect=True))
        version = int(lab.fake.objects[PATH]["metadata"]["resourceVersion"])
        await lab.passing(lambda: int(lab.fake.objects[PATH]["metadata"]["resourceVersion"]) > version + 2)
        assert leader.is_leading
        assert lab.lost == {}


async def test_stolen_lease_is_lost_at_once() -> None:
    async with election_harness() as lab:
        leader = lab.candidate("one")
        await wait_until(lambda: leader.is_leading)
        spec = {**lab.fake.objects[PATH]["spec"], "holderIdentity": "two"}
        lab.fake.put(LEASES, "x", "operator", spec=spec)
        await lab.passing(lambda: "one" in lab.lost)
        assert lab.lost["one"] == "two holds it"
        assert not leader.is_leading


async def test_deleted_lease_is_created_again() -> None:
    async with election_harness() as lab:
        leader = lab.candidate("one")
        await wait_until(lambda: leader.is_leading)
        lab.fake.remove(LEASES, "x", "operator")
        await lab.passing(lambda: PATH in lab.fake.objects)
        assert (leader.is_leading, lab.lost) == (True, {})


async def test_two_candidates_without_lease_do_not_both_lead() -> None:
    async with election_harness() as lab:
        both = [lab.candidate("one"), lab.candidate("two")]
        await lab.passing(lambda: any(candidate.reason.endswith("holds it") for candidate in both))
        assert sorted(candidate.is_leading for candidate in both) == [False, True]


async def test_suspended_process_learns_the_loss_from_its_clock() -> None:
    async with election_harness() as lab:
        leader = lab.candidate("one")
        await wait_until(lambda: leader.is_leading)
        lab.time.advance(TIMING.renew_seconds)
        assert not leader.is_leading


async def test_lease_that_cannot_be_released_expires() -> None:
    async with election_harness() as lab:
        leader = lab.candidate("one")
        await leader.release()
        assert lab.fake.objects == {}
        await wait_until(lambda: leader.is_leading)
        await cancel_and_wait(lab.tasks[0])
        lab.fake.ordered_responses.append(OrderedResponse(403, "Forbidden", "may not"))
        await leader.release()
        assert (leader.is_leading, lab.holder) == (False, "one")
        assert "may not" in leader.reason


async def test_one_connection_without_responses_does_not_cost_the_lease() -> None:
    async with election_harness() as lab:
        leader = lab.candidate("one")
        await wait_until(lambda: leader.is_leading)
        await lab.passing(lambda: int(lab.fake.objects[PATH]["spec"]["leaseTransitions"]) == 0)
        lab.fake.ordered_responses.append(OrderedResponse(mute=True))
        began = lab.time.now()
        await lab.passing(lambda: lab.time.now() - began > 2 * TIMING.lease_seconds)
        assert (leader.is_leading, lab.lost) == (True, {})
