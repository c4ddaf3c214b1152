"""Free sequences: fewer requests at an instance than it can compute at a time.

More requests would wait in the instance's own queue, in the order of their arrival. So where
callers are distinguished, the gateway keeps them, in its own order. Where other processes have
requests, `REQUESTS_AHEAD` of callers with a small share may wait in the instance. They get what
becomes free there next, whichever process used it.

Requests of all processes and gateways count, except those that still wait in one of them.
"""

from fairlead_gateway.admission.fair_share import FairShare
from fairlead_gateway.admission.kv_capacity import REQUESTS_AHEAD
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.worker.dispatch.router_registry import RoleRouters


class FreeSequences:
    """The free sequences of the instances that answer."""

    def __init__(self, routers: RoleRouters) -> None:
        self._routers = routers

    def may_start(self, key: str, instance_id: str, share: FairShare | None, caller: CallerKey) -> bool:
        """Returns whether an instance of a model can start one more request of a caller.

        share: the service of the model's callers. True if they are not distinguished, or if nothing
        says how many requests the instance computes at a time.
        """
        if share is None or not share.distinguishes_callers:
            return True
        bound, router = self._routers.sequence_bound(key, instance_id), self._routers.router(key)
        endpoint = None if router is None else router.endpoint(instance_id)
        if bound is None or router is None or endpoint is None:
            return True
        local = endpoint.load
        total = router.total_load(local)
        free = bound - total.sent
        if free > 0:
            return True
        return total.sent > local.sent and free > -REQUESTS_AHEAD and share.has_small_share(caller)
