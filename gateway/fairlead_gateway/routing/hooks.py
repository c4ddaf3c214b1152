"""The callbacks of a router: for the KV-cache index, and for sibling workers."""

from collections.abc import Callable
from dataclasses import dataclass

from fairlead_gateway.routing.load.inflight import InflightRequest
from fairlead_gateway.routing.load.shared_memory import SharedLoadTable
from fairlead_gateway.routing.request import RouteRequest


@dataclass(frozen=True, slots=True)
class DispatchHooks:
    """Callbacks of a router whose instances report their cache.

    - on_dispatch: called with model, request and instance.
    - on_finish: called with model, request, and prompt tokens and cached tokens as reported.
    """

    on_dispatch: Callable[[str, RouteRequest, str], None]
    on_finish: Callable[[str, InflightRequest, int | None, int | None], None]


@dataclass(frozen=True, slots=True)
class SiblingWorkers:
    """The other workers of the same gateway: their in-flight load, and callbacks that report to
    them.

    - report_dispatch: called with model, request and instance.
    - report_crash: called with the fingerprint of a body, the instance, when it got the body, and
      the time.
    - report_cleared: called with the fingerprint of such a body that was answered, and the time.
    """

    loads: SharedLoadTable
    report_dispatch: Callable[[str, RouteRequest, str], None]
    report_crash: Callable[[bytes, str, float, float], None]
    report_cleared: Callable[[bytes, float], None]
