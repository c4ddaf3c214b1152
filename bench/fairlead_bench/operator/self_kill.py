"""An operator that kills itself around a write: ``python -m fairlead_bench.operator.self_kill
before|after NUMBER …``.

Writes are those to children and to statuses of models; leases and events are not counted.
Everything else is the operator's own.
"""

import os
import signal
import sys
from typing import Any

from fairlead.kube import client
from fairlead.kube.transport.http_transport import HttpRequest
from fairlead_bench.operator.benchmark import CHILDREN
from fairlead_operator.__main__ import main

_KINDS = (*CHILDREN, "modeldeployments")


def arm_kill(when: str, number: int) -> None:
    """Kills the process right after the ``number``-th write, or right before it."""
    usual = client.KubeApi._request_once
    seen = 0

    async def counted(self: client.KubeApi, asked: HttpRequest, *decoding: Any) -> Any:
        nonlocal seen
        writes = asked.method != "GET" and any(f"/{kind}" in asked.path for kind in _KINDS)
        seen += writes
        if writes and seen == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await usual(self, asked, *decoding)
        if writes and seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    client.KubeApi._request_once = counted  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    arm_kill(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
