"""``python -m fairlead_gateway.worker.__main__``: one of the processes that carry the bytes. The helper starts it;
nobody else should.

It has no web framework, no Redis client and no YAML reader: what it works from comes over its channel, as values. When the channel
ends, the helper is gone: then it stops accepting, lets what is in flight finish, and ends. SIGTERM and the helper's word do the same.
"""

import asyncio
import mmap
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fairlead.limits import Limits
from fairlead.runtime import nonblocking_log, process_tuning
from fairlead.runtime.event_loop import loop_factory
from fairlead.settings import GatewaySettings, read_settings
from fairlead_gateway.worker.worker import Worker

if TYPE_CHECKING:  # most gateways observe nothing, and then need none of it
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker until it is told to stop."""
    options = _parse_options(sys.argv[1:] if arguments is None else arguments)
    if "--channel" not in options:
        print("fairlead-gateway-worker: this is started by fairlead-gateway alone", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches every process; the helper decides
    process_tuning.raise_open_file_limit()
    process_tuning.tune_malloc()
    settings = read_settings(GatewaySettings, os.environ)
    nonblocking_log.start_logging(settings.log_level)
    rows = mmap.mmap(options["--rows"], 0) if "--rows" in options else None
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_run(settings, rows, options["--channel"]))


def _parse_options(arguments: Sequence[str]) -> dict[str, int]:
    """``early.spawn`` wrote them: ``--number`` (which of the workers it is), ``--channel`` (the descriptor behind which the helper
    is) and, among siblings, ``--rows`` (that of the memory they share). Nobody types them: no parser for people is loaded."""
    return {name: int(value) for name, value in zip(arguments[::2], arguments[1::2], strict=False) if value.isdigit()}


async def _run(settings: GatewaySettings, rows: mmap.mmap | None, channel: int) -> int:
    return await Worker(settings, Limits(), rows).run(socket.socket(fileno=channel))


if __name__ == "__main__":
    sys.exit(main())
