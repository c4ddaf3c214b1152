"""What can go wrong when a stack is started here, and where a cluster is read.

FairleadError
├── BadIndex          what Redis holds of an index cannot be used, and why; exit code 1
├── BadInput
│   └── PortBusy      an address that was asked for is taken: names the address and the flag
└── Unavailable
    ├── StartFailed   a process of the stack does not come up: says which, why, and its last words
    ├── NoStack       chat and status found nothing to talk to
    ├── NoCluster     there is no way to an API server: says which way was taken, and the fix; exit code 3
    └── NoIndex       no Redis answers where the index should be; exit code 3
"""

from fairlead.errors import BadInput, FairleadError, Unavailable


class UnusableIndex(FairleadError):
    """Raised when Redis answers, but what it holds cannot be used: damaged, of another release, or not written down yet."""


class PortInUse(BadInput):
    """Raised when somebody else listens on the address that ``field`` (a flag) names."""


class StartFailed(Unavailable):
    """Raised when a process of the stack ended before it was ready and trying again did not help."""


class StackUnreachable(Unavailable):
    """Raised when no running stack was found, or it does not answer."""


class ClusterUnreachable(Unavailable):
    """Raised when no API server answers; the message names where the way to it was found, the hint what to do."""


class IndexUnreachable(Unavailable):
    """Raised when no Redis answers; the message names its place without the password."""
