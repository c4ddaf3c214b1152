"""The queue of one instance: order, and what it holds of requests that left."""

import weakref
from types import SimpleNamespace
from typing import Any, cast

from fairlead_gateway.admission.worker.admission_queue import InstanceQueue, QueuedDispatch


class _Context(SimpleNamespace):
    """The fields of a request's context that the queue reads."""


def _queued(context: _Context, place: float) -> QueuedDispatch:
    on_end = cast(Any, None)
    return QueuedDispatch(cast(Any, context), cast(Any, None), on_end, 0.0, 1.0, (place, 0.0, ""))


def test_request_is_freed_when_it_leaves() -> None:
    queue, alive = InstanceQueue(), []
    for number in range(400):
        context = _Context(caller="one", policy=SimpleNamespace(weight=1.0))
        alive.append(weakref.ref(context))
        queue.add(str(number), _queued(context, float(number)))
    del context
    for number in range(399):
        queue.pop(str(number))
        assert [index for index, ref in enumerate(alive) if ref() is None] == [*range(number + 1)]


def test_id_that_comes_again_takes_its_own_place() -> None:
    queue, context = InstanceQueue(), _Context(caller="one", policy=SimpleNamespace(weight=1.0))
    for name, place in [("a", 1.0), ("b", 2.0), ("c", 3.0)]:
        queue.add(name, _queued(context, place))
    queue.pop("a")
    last = _queued(context, 4.0)
    queue.add("a", last)
    order = []
    while (first := queue.first(cast(Any, None))) is not None:
        order.append(first.sort_key[0])
        queue.pop(next(name for name, queued in queue.requests.items() if queued is first))
    assert order == [2.0, 3.0, 4.0]
