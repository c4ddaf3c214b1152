"""The callbacks of a router: for the KV-cache index, and for sibling workers."""

from collections.abc import Callable
from dataclasses import dataclass

from fairlead_gateway.routing.load.inflight import InflightRequest
from fairlead_gateway.routing.load.shared_memory import SharedLoadTable
from fairlead_gateway.routing.request import RouteRequest


@dataclass(frozen=True, slots=True)
class DispatchHooks:
    """Callbacks of a router for the dispatches of a model with instances that report KV events.

    - on_dispatch: called with model, request and instance.
    - on_finish: called with model, request, and the prompt and cached tokens that the engine
      reported (None if it did not).
    """

    on_dispatch: Callable[[str, RouteRequest, str], None]
    on_finish: Callable[[str, InflightRequest, int | None, int | None], None]


@dataclass(frozen=True, slots=True)
class SiblingWorkers:
    """The other workers of the same gateway: their in-flight load, and callbacks that report to
    them.

    - report_dispatch: called with model, request and instance.
    - report_crash: called with the fingerprint of a request body, the instance that crashed, when
      it received the body, and the time.
    - report_cleared: called with the fingerprint of such a body that was answered, and the time.
    """

    loads: SharedLoadTable
    report_dispatch: Callable[[str, RouteRequest, str], None]
    report_crash: Callable[[bytes, str, float, float], None]
    report_cleared: Callable[[bytes, float], None]
