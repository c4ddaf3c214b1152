"""The Kubernetes API client of a leader: it sends a write only while this process leads.

The check is made right before each attempt of each write, and not once before a sequence of writes.

Why: a process that was suspended goes on with what it was doing, before it learns that it has lost
the lease. Its next write would bring back what it knew before, such as the template of a Deployment
that the new leader has changed meanwhile.
"""

from collections.abc import Callable

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import NotLeading


class LeaderKubeApi(KubeApi):
    """A client that raises NotLeading for a write while this process does not lead.

    The election itself needs a client of its own.
    """

    def restrict_writes(self, is_leading: Callable[[], bool]) -> None:
        """Sends writes only while `is_leading` returns True."""

        def check() -> None:
            if not is_leading():
                raise NotLeading("this replica does not lead any more; nothing was written")

        self._transport.before_write = check
