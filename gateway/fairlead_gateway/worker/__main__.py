"""`python -m fairlead_gateway.worker`: one worker process. Only the supervisor starts it.

The worker's keys, fleet and other inputs come over its channel as values. So it loads no web
framework, no Redis client and no YAML reader. When the channel closes, the supervisor is gone. The
worker then stops accepting, lets requests in flight finish, and ends. SIGTERM and the supervisor's
message do the same.
"""

import asyncio
import mmap
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace

from fairlead.limits import Limits
from fairlead.runtime import nonblocking_log, process_tuning
from fairlead.runtime.event_loop import loop_factory
from fairlead.settings import GatewaySettings, read_settings
from fairlead_gateway.worker.worker import Worker


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one worker until the supervisor or a signal ends it; returns the exit code.

    The exit code is 2 if no supervisor started the process.
    """
    options = _parse_options(sys.argv[1:] if arguments is None else arguments)
    if "--channel" not in options:
        print("fairlead-gateway-worker: only fairlead-gateway can start a worker", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all processes; the supervisor decides
    process_tuning.deny_inspection()
    process_tuning.raise_open_file_limit()
    process_tuning.tune_malloc()
    settings = read_settings(GatewaySettings, os.environ)
    nonblocking_log.start_logging(settings.log_level)
    shared_memory = mmap.mmap(options["--rows"], 0) if "--rows" in options else None
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_run(settings, shared_memory, options["--channel"], options.get("--sibling-port")))


def _parse_options(arguments: Sequence[str]) -> dict[str, int]:
    """Returns the options that `worker_spawn.spawn_worker` has written.

    - `--number`: the worker's number
    - `--channel`: the file descriptor of the channel
    - `--rows`: the file descriptor of the shared load table, if there is one
    - `--sibling-port`: that of the listening socket for requests of other workers, if there are any

    Why not argparse: only the supervisor writes them, and it would cost memory in every worker.
    """
    return {name: int(value) for name, value in zip(arguments[::2], arguments[1::2], strict=False) if value.isdigit()}


async def _run(
    settings: GatewaySettings, shared_memory: mmap.mmap | None, channel: int, sibling_port: int | None
) -> int:
    limits = replace(Limits(), **settings.limits())
    siblings = None if sibling_port is None else socket.socket(fileno=sibling_port)
    return await Worker(settings, limits, shared_memory, siblings).run(socket.socket(fileno=channel))


if __name__ == "__main__":
    sys.exit(main())
