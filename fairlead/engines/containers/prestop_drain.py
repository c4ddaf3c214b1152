"""Waiting for requests in flight before an engine is told to end.

A pod that is deleted leaves the fleet at once, since gateways watch pods; its engine does not know and goes on serving. So
the container's preStop hook asks the engine's own metrics until nothing runs or waits there, and SIGTERM then finds it idle:
what engines do to requests at SIGTERM (three different things were seen of one release) no longer matters.

A worker of a group asks its leader, by name. The name goes with the leader, so one that nobody has is a leader that has ended; so
is an address that nobody has any more, since names are remembered for longer than pods live. "Try again" is not that by itself: a
name server that does not answer says so. But it is also what a cluster that reaches no other name servers says of every name that
is not its own, and of the leader's, too short to be whole, in the end; so the name of the API server, which is always there, is
looked up beside it: if that one is found, the leader's is gone. A leader that only does not answer in time says nothing.
"""

from dataclasses import dataclass
from typing import Any, Final

IDLE_SECONDS: Final = 5
"""Idle this long means drained: gateways have long heard of the deletion (0.85 s were measured), and their last request came."""
FIXED_DELAY_SECONDS: Final = 10
"""What an engine without known metrics is given before SIGTERM, so that it ends what it has without getting more."""

DRAIN_SCRIPT: Final = """\
import errno, os, socket, sys, time, urllib.request
url, quiet, names = os.path.expandvars(sys.argv[1]), float(sys.argv[3]), tuple(sys.argv[4:])
end, idle_since = time.monotonic() + float(sys.argv[2]), None
open_direct = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
def known():
    try:
        return bool(socket.getaddrinfo("kubernetes.default", 443))
    except OSError:
        return False
while time.monotonic() < end:
    try:
        page = open_direct(url, timeout=5).read().decode()
        busy = any(float(line.split()[-1]) > 0 for line in page.splitlines() if line.startswith(names))
    except Exception as error:
        reason = getattr(error, "reason", None)
        if isinstance(reason, ConnectionRefusedError):
            break
        said = getattr(reason, "errno", None)
        if isinstance(reason, socket.gaierror):
            busy = said != socket.EAI_NONAME and not (said == socket.EAI_AGAIN and known())
        else:
            busy = said != errno.EHOSTUNREACH
    now = time.monotonic()
    idle_since = None if busy else idle_since if idle_since is not None else now
    if idle_since is not None and now - idle_since >= quiet:
        break
    time.sleep(0.5)
"""
"""Runs in the engine's image, whatever Python that has: URL, most seconds, quiet seconds, names of gauges."""


@dataclass(frozen=True, slots=True)
class PreStopDrain:
    """``gauges`` are the metrics that say how many requests run and wait; without them a fixed time is waited."""

    url: str | None = None
    gauges: tuple[str, ...] = ()

    def prestop_hook(self, max_seconds: float) -> dict[str, Any]:
        """The preStop hook of the container."""
        if self.url is None:
            return {"sleep": {"seconds": FIXED_DELAY_SECONDS}}
        words = [self.url, f"{max_seconds:g}", str(IDLE_SECONDS), *self.gauges]
        return {"exec": {"command": ["python3", "-c", DRAIN_SCRIPT, *words]}}
