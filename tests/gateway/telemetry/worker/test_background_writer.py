"""A receiver may be stuck, broken or slow: callers do not wait, and losses are counted."""

import threading

import pytest

from fairlead_gateway.telemetry.worker.background_writer import BackgroundWriter, QueueBounds


class Receiver:
    """Takes batches on request."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.asked = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, batch: list[int]) -> None:
        self.asked.set()
        assert self.open.wait(30)
        self.batches.append(batch)


def box(write: object, limit: int = 3, lost: list[int] | None = None) -> BackgroundWriter[int]:
    dropped = lost if lost is not None else []
    return BackgroundWriter("test", write, QueueBounds(limit, 2, 0.0), on_dropped=dropped.append)  # type: ignore[arg-type]  # a receiver


def test_what_is_offered_is_handed_over_in_order_and_in_batches() -> None:
    receiver = Receiver()
    receiver.open.set()
    writer = box(receiver, limit=100)
    for number in range(5):
        writer.offer(number)
    writer.close(30)
    assert [value for batch in receiver.batches for value in batch] == [0, 1, 2, 3, 4]
    assert max(map(len, receiver.batches)) <= 2


def test_a_stuck_receiver_costs_what_does_not_fit_and_nobody_waits() -> None:
    receiver, lost = Receiver(), list[int]()
    writer = box(receiver, limit=3, lost=lost)
    writer.offer(0)
    assert receiver.asked.wait(30)
    for number in range(1, 11):
        writer.offer(number)  # returns at once, though nothing is taken
    assert sum(lost) == 7
    receiver.open.set()
    writer.close(30)
    assert [value for batch in receiver.batches for value in batch] == [0, 1, 2, 3]


def test_what_belongs_together_is_taken_or_dropped_together() -> None:
    receiver, lost = Receiver(), list[int]()
    writer = box(receiver, limit=3, lost=lost)
    writer.offer(1, 2)
    assert receiver.asked.wait(30)
    writer.offer(3, 4)
    writer.offer(5, 6)
    assert lost == [2]
    receiver.open.set()
    writer.close(30)
    assert receiver.batches == [[1, 2], [3, 4]]


def test_closing_does_not_wait_for_a_stuck_receiver() -> None:
    receiver = Receiver()
    writer = box(receiver)
    writer.offer(1)
    assert receiver.asked.wait(30)
    writer.close(0.0)
    assert receiver.batches == []
    receiver.open.set()


def test_a_receiver_that_raises_loses_that_batch_and_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    taken: list[int] = []
    lost: list[int] = []
    first, second = threading.Event(), threading.Event()

    def lose(number: int) -> None:
        lost.append(number)
        first.set()

    def write(batch: list[int]) -> None:
        if not taken and not lost:
            raise OSError(28, "No space left on device", "/a/secret/path")
        taken.extend(batch)
        second.set()

    writer: BackgroundWriter[int] = BackgroundWriter("test", write, QueueBounds(3, gather_seconds=0.0), on_dropped=lose)
    writer.offer(1)
    assert first.wait(30)
    writer.offer(2)
    assert second.wait(30)
    writer.close(30)
    assert (lost, taken) == ([1], [2])
    assert "No space left on device" in caplog.text


def test_nothing_runs_before_the_first_item_and_closing_an_unused_one_is_nothing() -> None:
    before = threading.active_count()
    writer = box(Receiver())
    assert threading.active_count() == before
    writer.close(30)


def test_a_defect_of_the_receiver_is_told_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    lost: list[int] = []

    def write(batch: list[int]) -> None:
        raise ValueError("tell me of canary-7c1e")

    writer = box(write, lost=lost)
    writer.offer(1)
    writer.close(30)
    assert lost == [1]
    assert "ValueError" in caplog.text
    assert "canary" not in caplog.text
