"""The work queue: no key runs twice at once, none is lost, and delays grow. Time is manual."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.runtime.tasks import cancel_and_wait
from fairlead_operator.controller.workqueue import BASE_DELAY_SECONDS, MAX_DELAY_SECONDS, RateLimitedQueue, WorkQueue
from fairlead_testing.waiting import FakeTime, wait_until


def test_key_added_twice_is_processed_once() -> None:
    work = RateLimitedQueue()
    work.add("a")
    work.add("a")
    assert (work.get(0.0), work.get(0.0)) == ("a", None)


def test_key_added_while_running_is_processed_again_afterwards() -> None:
    work = RateLimitedQueue()
    work.add("a")
    assert work.get(0.0) == "a"
    work.add("a")
    work.add("a")
    assert work.get(0.0) is None
    work.done("a")
    assert (work.get(0.0), work.get(0.0)) == ("a", None)


def test_event_of_its_own_write_does_not_requeue_a_key() -> None:
    work = RateLimitedQueue()
    work.add("a")
    assert work.get(0.0) == "a"
    work.add("a")
    work.ignore_self_event("a")
    work.done("a")
    assert work.get(0.0) is None
    work.add("a")
    assert work.get(0.0) == "a"
    for _ in range(2):  # its own work, and something else
        work.add("a")
    work.ignore_self_event("a")
    work.done("a")
    assert work.get(0.0) == "a"
    work.ignore_self_event("a")  # nothing came
    work.done("a")
    assert work.get(0.0) is None


def test_pauses_double_with_jitter_and_are_bounded() -> None:
    work = RateLimitedQueue()
    for failures in range(1, 40):
        work.add("a")
        assert work.get(0.0) == "a"
        least = work.retry("a", 0.0, 0.0)
        assert work.failures("a") == failures
        whole = min(MAX_DELAY_SECONDS, BASE_DELAY_SECONDS * 2 ** (failures - 1))
        assert least == pytest.approx(whole / 2)
    work.add("a")
    work.get(0.0)
    work.done("a")
    assert work.failures("a") == 0


def test_failed_key_waits_and_a_change_ends_the_wait() -> None:
    work = RateLimitedQueue()
    work.add("a")
    work.get(10.0)
    pause = work.retry("a", 10.0, 1.0)
    assert work.get(10.0 + pause / 2) is None
    assert work.next_due_at() == 10.0 + pause
    assert work.get(10.0 + pause) == "a"
    work.retry("a", 20.0, 1.0)
    work.add("a")
    assert (work.get(20.0), work.next_due_at()) == ("a", None)


def test_earliest_of_several_times_counts() -> None:
    work = RateLimitedQueue()
    work.add_at("a", 9.0)
    work.add_at("a", 5.0)
    work.add_at("a", 7.0)
    assert (work.next_due_at(), work.get(4.9), work.delayed_count) == (5.0, None, 1)
    assert work.get(5.0) == "a"
    work.done("a")
    assert work.get(99.0) is None


def test_forgotten_key_does_not_return() -> None:
    work = RateLimitedQueue()
    work.add("a")
    work.add_at("b", 1.0)
    work.forget("a")
    work.forget("b")
    assert work.get(9.0) is None


def test_models_of_one_namespace_that_change_all_the_time_leave_turns_to_others() -> None:
    work = RateLimitedQueue()
    for number in range(1_000):
        work.add(f"flood/{number}")
    work.add("calm/a")
    work.add("calm/b")
    taken = []
    for _ in range(4):
        key = work.get(0.0)
        assert key is not None
        work.add(key)  # it has changed meanwhile
        work.done(key)
        taken.append(key)
    assert taken == ["flood/0", "calm/a", "flood/1", "calm/b"]


def test_slow_passes_of_one_namespace_leave_a_worker_to_others() -> None:
    work = RateLimitedQueue()
    for number in range(9):
        work.add(f"flood/{number}")
    assert [work.get(0.0, 2) for _ in range(3)] == ["flood/0", "flood/1", None]
    work.add("calm/a")
    assert work.get(0.0, 2) == "calm/a"
    work.done("flood/0")
    assert work.get(0.0, 2) == "flood/2"


def test_model_that_is_rescheduled_all_the_time_leaves_few_entries() -> None:
    work = RateLimitedQueue()
    for number in range(10_000):
        work.add_at("a", 86_400.0 + number)
        work.add("a")
        assert work.get(0.0) == "a"
        work.done("a")
    assert len(work._heap) <= 2_048


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "at", "take", "done", "fail", "tick"]), st.sampled_from("abc")), max_size=60
    )
)
def test_nothing_is_lost_and_nothing_runs_twice(steps: list[tuple[str, str]]) -> None:
    work, now = RateLimitedQueue(), 0.0
    running: set[str] = set()
    owed: set[str] = set()
    for what, key in steps:
        if what == "add":
            work.add(key)
            owed.add(key)
        elif what == "at":
            work.add_at(key, now + 3.0)
            owed.add(key)
        elif what == "take" and (taken := work.get(now)) is not None:
            assert taken not in running
            running.add(taken)
            owed.discard(taken)
        elif what == "done" and key in running:
            running.discard(key)
            work.done(key)
        elif what == "fail" and key in running:
            running.discard(key)
            work.retry(key, now, 0.5)
            owed.add(key)
        elif what == "tick":
            now += 1.0
    for key in sorted(running):
        work.done(key)
    keys = set()
    while (taken := work.get(now + 1_000.0)) is not None:
        keys.add(taken)
        work.done(taken)
    assert owed <= keys
    assert (work.ready_count, work.running_count, work.delayed_count) == (0, 0, 0)


@asynccontextmanager
async def running_queue() -> AsyncIterator[tuple[WorkQueue, FakeTime, list[str], dict[str, Exception]]]:
    time = FakeTime()
    queue, seen, errors = WorkQueue(time, lambda: 1.0, pause=time.pause), [], {}

    async def reconcile(key: str) -> float | None:
        seen.append(key)
        if key in errors:
            raise errors[key]
        return 30.0 if key == "again" else None

    task = asyncio.ensure_future(queue.process(reconcile, 2, lambda key, error, pause: None))
    try:
        yield queue, time, seen, errors
    finally:
        await cancel_and_wait(task)


async def test_workers_process_wait_and_requeue() -> None:
    async with running_queue() as (queue, time, seen, _):
        queue.add("a")
        queue.add("again")
        await wait_until(lambda: sorted(seen) == ["a", "again"])
        await wait_until(lambda: 30.0 in time.pending_pauses)
        time.advance(30.0)
        await wait_until(lambda: seen.count("again") == 2)


async def test_failing_model_does_not_affect_others() -> None:
    async with running_queue() as (queue, time, seen, errors):
        errors["bad"] = RuntimeError("no")
        queue.add("bad")
        queue.add("good")
        await wait_until(lambda: "good" in seen and queue.keys.failures("bad") == 1)
        del errors["bad"]
        await wait_until(lambda: bool(time.pending_pauses))
        time.advance(1.0)
        await wait_until(lambda: seen.count("bad") == 2 and queue.keys.failures("bad") == 0)
