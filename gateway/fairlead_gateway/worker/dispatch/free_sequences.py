"""Free sequences: fewer requests at an instance than it can compute at a time.

More requests would wait in the instance's own queue, in the order of their arrival. So where
callers are distinguished, the gateway keeps them, in its own order. Where other processes have
requests, `REQUESTS_AHEAD` of callers with a small share may wait in the instance. They get what
becomes free there next, whichever process used it.

Requests of all processes and gateways count, except those that still wait in one of them.
"""

from fairlead_gateway.admission.kv_capacity import REQUESTS_AHEAD
from fairlead_gateway.routing.load.inflight import EndpointLoad


def has_free_sequence(bound: int | None, local: EndpointLoad, total: EndpointLoad, *, small_share: bool) -> bool:
    """Returns whether an instance can start one more request of a caller.

    bound: how many it computes at a time. True if nothing says so (None).
    total: of all processes, `local` included.
    small_share: the caller was served much less than another one.
    """
    if bound is None:
        return True
    free = bound - total.sent
    return free > 0 or (small_share and total.sent > local.sent and free > -REQUESTS_AHEAD)


def tokens_of_others(local: EndpointLoad, total: EndpointLoad) -> float:
    """Returns the tokens of other processes that an instance has.

    Processes report the tokens of all their requests, and how many of these wait in them. Those are
    taken to be as large as the others.
    """
    inflight = total.inflight - local.inflight
    if total is local or inflight <= 0:
        return 0.0
    sent_share = max(0.0, min(1.0, (total.sent - local.sent) / inflight))
    return max(0.0, sent_share * (total.inflight_tokens - local.inflight_tokens))
