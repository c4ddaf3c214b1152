"""Leading: the decision over a lease, and candidates before an API server that is slow, away, or contradicts."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.lease import Act, Election, Seen, Terms, decide, record, seen
from fairlead.kube.resource import LEASES, Manifest
from fairlead.tasks import ended
from fairlead.testing.fake_kube import Answer, FakeKube, fake_kube
from fairlead.testing.timeline import Timeline
from fairlead.testing.waiting import until

TERMS = Terms()
PATH = "/apis/coordination.k8s.io/v1/namespaces/x/leases/operator"


def found(holder: str = "other", since: float = 0.0, lease_seconds: float = 15.0) -> Seen:
    return Seen("7", holder, lease_seconds, 3, "2026-01-01T00:00:00.000000Z", since)


@pytest.mark.parametrize(
    ("lease", "now", "act", "reason"),
    [
        (None, 0.0, Act.CREATE, "there is no lease"),
        (found("me"), 1000.0, Act.RENEW, "it is ours"),
        (found(""), 0.0, Act.TAKE, "it was given back"),
        (found(), 14.9, Act.WAIT, "other holds it"),
        (found(), 15.0, Act.TAKE, "other has not renewed it for 15.0 s"),
        (found(lease_seconds=1.0, since=14.5), 15.0, Act.WAIT, "other holds it"),
        (found(since=100.0), 110.0, Act.WAIT, "other holds it"),
    ],
)
def test_the_decision(lease: Seen | None, now: float, act: Act, reason: str) -> None:
    step = decide(lease, "me", now)
    assert (step.act, step.reason) == (act, reason)


def test_the_time_of_a_lease_is_that_of_whoever_looks() -> None:
    lease: Manifest = {
        "metadata": {"resourceVersion": "1"},
        "spec": {"holderIdentity": "o", "leaseDurationSeconds": 15},
    }
    first = seen(lease, None, 10.0)
    assert (first.since, first.lease_seconds) == (10.0, 15.0)
    assert seen(lease, first, 20.0) == first
    lease["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z"
    assert seen(lease, first, 20.0) == first  # what its holder's clock says does not matter
    lease["metadata"]["resourceVersion"] = "2"
    assert seen(lease, first, 20.0).since == 20.0
    assert seen({"metadata": {"resourceVersion": "1"}}, None, 0.0).lease_seconds == TERMS.lease_seconds


def test_a_renewal_keeps_when_it_was_acquired_and_a_change_of_hands_is_counted() -> None:
    renewed = record(found("me"), "me", TERMS, 1_800_000_000.0)
    assert renewed["acquireTime"] == "2026-01-01T00:00:00.000000Z"
    assert (renewed["renewTime"], renewed["leaseTransitions"]) == ("2027-01-15T08:00:00.000000Z", 3)
    taken = record(found(), "me", TERMS, 1_800_000_000.0)
    assert (taken["holderIdentity"], taken["leaseTransitions"]) == ("me", 4)
    assert taken["acquireTime"] == taken["renewTime"] == "2027-01-15T08:00:00.000000Z"
    assert record(None, "me", TERMS, 0.0)["leaseTransitions"] == 0


def test_terms_that_let_two_lead_are_refused() -> None:
    with pytest.raises(ValueError, match="lease_seconds > renew_seconds"):
        Terms(lease_seconds=10.0, renew_seconds=10.0)


# --- candidates ---------------------------------------------------------------------------------------------------------


class Lab:
    """An API server and candidates, in one time."""

    def __init__(self, fake: FakeKube) -> None:
        self.fake = fake
        self.time = Timeline()
        self.apis: list[KubeApi] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.lost: dict[str, str] = {}

    def candidate(self, me: str) -> Election:
        api = KubeApi(self.fake.access(), self.time, lambda: 0.0, pause=self.time.pause)
        self.apis.append(api)
        election = Election(api, "x", "operator", me, self.time, lambda: 0.0, pause=self.time.pause)

        async def run() -> None:
            await election.acquire()
            self.lost[me] = await election.hold()

        self.tasks.append(asyncio.create_task(run()))
        return election

    async def passing(self, condition: Callable[[], bool], seconds: float = 0.5) -> None:
        """Let time pass in small steps until ``condition`` holds; nobody's request is left behind."""

        def turned() -> bool:
            if condition():
                return True
            self.time.advance(seconds)
            return False

        await until(turned)

    @property
    def holder(self) -> str:
        return str(self.fake.objects[PATH]["spec"]["holderIdentity"])


def run(check: Callable[[Lab], Awaitable[None]]) -> None:
    async def main() -> None:
        async with fake_kube() as fake:
            lab = Lab(fake)
            try:
                await check(lab)
            finally:
                for task in lab.tasks:
                    await ended(task)
                for api in lab.apis:
                    await api.close()

    asyncio.run(main())


def test_one_leads_and_the_other_waits() -> None:
    async def check(lab: Lab) -> None:
        one = lab.candidate("one")
        await until(lambda: one.leading)
        two = lab.candidate("two")
        await until(lambda: two.reason == "one holds it")
        first = lab.fake.objects[PATH]["metadata"]["resourceVersion"]
        await lab.passing(lambda: int(lab.fake.objects[PATH]["metadata"]["resourceVersion"]) > int(first) + 3)
        assert (one.leading, two.leading, two.holder) == (True, False, "one")
        assert lab.fake.objects[PATH]["spec"]["leaseTransitions"] == 0

    run(check)


def test_who_gives_it_back_is_followed_at_once() -> None:
    async def check(lab: Lab) -> None:
        one = lab.candidate("one")
        await until(lambda: one.leading)
        two = lab.candidate("two")
        await until(lambda: two.reason == "one holds it")
        await ended(lab.tasks[0])
        await one.release()
        assert (one.leading, lab.holder) == (False, "")
        before = lab.time.now()
        await lab.passing(lambda: two.leading)
        assert lab.time.now() - before < TERMS.lease_seconds
        assert lab.holder == "two"

    run(check)


def test_who_dies_is_followed_when_the_lease_has_run_out_and_not_before() -> None:
    async def check(lab: Lab) -> None:
        one = lab.candidate("one")
        await until(lambda: one.leading)
        await ended(lab.tasks[0])
        two = lab.candidate("two")
        await until(lambda: two.reason == "one holds it")
        before = lab.time.now()
        await lab.passing(lambda: two.leading)
        assert lab.time.now() - before >= TERMS.lease_seconds
        assert not one.leading  # by its own clock, without having asked anybody
        assert "one has not renewed it" in two.reason

    run(check)


@pytest.mark.parametrize("order", [Answer(503, message="etcd is away"), Answer(reset=True), Answer(mute=True)])
def test_an_api_server_that_goes_away_ends_leading_in_time(order: Answer) -> None:
    async def check(lab: Lab) -> None:
        one = lab.candidate("one")
        await until(lambda: one.leading)
        lab.fake.answers.extend([order] * 1000)
        began = lab.time.now()
        await lab.passing(lambda: "one" in lab.lost)
        assert not one.leading
        assert lab.time.now() - began < TERMS.lease_seconds
        lab.fake.answers.clear()
        await one.acquire()
        assert one.leading

    run(check)


def test_a_lost_answer_is_no_lost_lease() -> None:
    async def check(lab: Lab) -> None:
        one = lab.candidate("one")
        await until(lambda: one.leading)
        lab.fake.answers.append(Answer(503, done=True))
        version = int(lab.fake.objects[PATH]["metadata"]["resourceVersion"])
        await lab.passing(lambda: int(lab.fake.objects[PATH]["metadata"]["resourceVersion"]) > version + 2)
        assert one.leading
        assert lab.lost == {}

    run(check)


def test_a_lease_that_somebody_took_is_lost_at_once() -> None:
    async def check(lab: Lab) -> None:
        one = lab.candidate("one")
        await until(lambda: one.leading)
        spec = {**lab.fake.objects[PATH]["spec"], "holderIdentity": "two"}
        lab.fake.put(LEASES, "x", "operator", spec=spec)
        await lab.passing(lambda: "one" in lab.lost)
        assert lab.lost["one"] == "two holds it"
        assert not one.leading

    run(check)


def test_a_lease_that_somebody_deleted_is_made_again() -> None:
    async def check(lab: Lab) -> None:
        one = lab.candidate("one")
        await until(lambda: one.leading)
        lab.fake.remove(LEASES, "x", "operator")
        await lab.passing(lambda: PATH in lab.fake.objects)
        assert (one.leading, lab.lost) == (True, {})

    run(check)


def test_two_that_find_no_lease_do_not_both_lead() -> None:
    async def check(lab: Lab) -> None:
        both = [lab.candidate("one"), lab.candidate("two")]
        await lab.passing(lambda: sorted(one.reason for one in both)[0].endswith("holds it"))
        assert sorted(one.leading for one in both) == [False, True]

    run(check)


def test_a_process_that_was_stopped_hears_the_truth_from_its_own_clock() -> None:
    async def check(lab: Lab) -> None:
        one = lab.candidate("one")
        await until(lambda: one.leading)
        lab.time.advance(TERMS.renew_seconds)
        assert not one.leading

    run(check)


def test_what_cannot_be_given_back_runs_out() -> None:
    async def check(lab: Lab) -> None:
        one = lab.candidate("one")
        await one.release()
        assert lab.fake.objects == {}
        await until(lambda: one.leading)
        await ended(lab.tasks[0])
        lab.fake.answers.append(Answer(403, "Forbidden", "may not"))
        await one.release()
        assert (one.leading, lab.holder) == (False, "one")
        assert "may not" in one.reason

    run(check)
