"""A worker's slices report what is in flight until it is settled."""

from dataclasses import replace

import msgspec

from fairlead.tenants.model import Limit, LimitUnit, Window
from fairlead_gateway.limits.worker.limit_plan import MAX_COUNT, LeasedLimit

_LIMIT = Limit(LimitUnit.REQUESTS, 10, Window.MINUTE)


def test_a_limit_without_a_slice_is_reported_until_its_requests_end() -> None:
    limit = LeasedLimit(replace(_LIMIT, is_soft=True))
    taken = limit.take(10, 1.0)
    assert limit.take_report(is_due=True)
    assert limit.has_grant  # a request is in flight
    limit.settle(taken, 10, 7)
    assert [slice_.spent for slice_ in limit.take_report(is_due=False)] == [7]
    assert not limit.has_grant


def test_a_soft_limit_refuses_once_its_document_makes_it_hard() -> None:
    limit = LeasedLimit(replace(_LIMIT, is_soft=True))
    limit.on_grant(60_000, 10, 9.0)
    assert limit.has(11, 1.0)
    limit.replace(_LIMIT)
    assert (limit.has(10, 1.0), limit.has(11, 1.0)) == (True, False)
    limit.replace(replace(_LIMIT, is_soft=True))
    assert limit.has(11, 1.0)


def test_use_beyond_the_reservation_counts_in_the_current_window() -> None:
    limit = LeasedLimit(_LIMIT)
    limit.on_grant(60_000, 10, 9.0)
    first = limit.take(4, 1.0)
    limit.on_grant(120_000, 10, 19.0)
    limit.settle(first, 4, 9)
    assert (first.spent, limit.current.spent) == (4, 5)


def test_a_slice_that_others_wait_for_is_given_back() -> None:
    limit = LeasedLimit(_LIMIT)
    limit.on_grant(60_000, 10, 99.0)
    limit.settle(limit.take(4, 1.0), 4, 4)
    limit.is_contended = True
    limit.give_back(2.0)
    assert (limit.current.returned, limit.current.free) == (6, 0)


def test_a_counter_grows_no_further_than_messages_can_hold() -> None:
    limit = LeasedLimit(_LIMIT)
    limit.on_grant(60_000, 10, 9.0)
    for _ in range(20):
        limit.settle(limit.take(1, 1.0), 1, 1 << 62)
    (report,) = limit.take_report(is_due=True)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(report.spent)) == MAX_COUNT
