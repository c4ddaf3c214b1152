"""The preStop hook that waits for requests in flight before an engine is stopped.

A deleted pod leaves the fleet at once, since gateways watch pods; its engine does not notice and
goes on serving. The hook polls the engine's metrics until no request runs or waits, so that SIGTERM
finds the engine idle.

Why: one engine release treated requests at SIGTERM in three different ways.

Nothing may listen since the engine has ended, or since it is starting. The first process of a
container loses a SIGTERM that it neither catches nor blocks, and Python catches none until its
program asks for it. Such an engine would start, serve nothing and keep its devices until SIGKILL.
So the hook waits until the first process notices SIGTERM.

A worker pod of a group polls its leader by name.

- A name that does not exist means that the leader has ended.
- So does an unreachable address: names are cached for longer than pods live.
- "Try again" alone is ambiguous: a name server that does not respond causes it. Clusters without
  upstream name servers also return it for every foreign name, and finally for the leader's short
  name. The script then resolves the API server, which always exists. If that succeeds, the leader
  is gone.
- A timeout of the leader is no evidence.
"""

from dataclasses import dataclass
from typing import Any, Final

IDLE_SECONDS: Final = 5
"""An engine idle for this long is drained.

Why: gateways learn of the deletion sooner (0.85 s were measured).
"""
FIXED_DELAY_SECONDS: Final = 10
"""The delay before SIGTERM for an engine without known metrics, so that it gets no new requests."""

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
def notices():
    try:
        with open("/proc/1/status") as lines:
            masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigBlk", "SigCgt"))]
    except OSError:
        return True
    return any(mask >> 14 & 1 for mask in masks)
while time.monotonic() < end:
    try:
        page = open_direct(url, timeout=5).read().decode()
        busy = any(float(line.split()[-1]) > 0 for line in page.splitlines() if line.startswith(names))
    except Exception as error:
        reason = getattr(error, "reason", None)
        if isinstance(reason, ConnectionRefusedError) and notices():
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
"""Runs in the engine's image with its Python. Arguments: URL, maximum seconds, idle seconds,
gauges.
"""


@dataclass(frozen=True, slots=True)
class PreStopDrain:
    """The preStop hook of an engine.

    url: the engine's metrics page. If None, the hook waits for a fixed time.
    gauges: metrics with the number of running and waiting requests.
    """

    url: str | None = None
    gauges: tuple[str, ...] = ()

    def prestop_hook(self, max_seconds: float) -> dict[str, Any]:
        """Returns the container's preStop hook.

        max_seconds: maximum time of a hook that polls. Without `url`, `FIXED_DELAY_SECONDS` apply.
        """
        if self.url is None:
            return {"sleep": {"seconds": FIXED_DELAY_SECONDS}}
        arguments = [self.url, f"{max_seconds:g}", str(IDLE_SECONDS), *self.gauges]
        return {"exec": {"command": ["python3", "-c", DRAIN_SCRIPT, *arguments]}}
