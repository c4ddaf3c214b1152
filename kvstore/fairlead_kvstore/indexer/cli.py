"""The command line of an indexer (``--fleet FILE --redis URL``). It supplies clock, randomness and
signals.

Several indexers may run: for each model a lease in Redis selects the one that reads and writes.
"""

import argparse
import asyncio
import logging
import os
import random
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial

from fairlead.errors import FairleadError, SettingsError
from fairlead.fleet import cli_options
from fairlead.limits import Limits
from fairlead.runtime import process_tuning
from fairlead.runtime.cli_options import configure_stderr_logging, parse_address
from fairlead.runtime.clock import Pacing, SystemClock
from fairlead.runtime.compiled_build import is_compiled
from fairlead.runtime.event_loop import loop_factory
from fairlead.settings import IndexerSettings, read_settings, unknown_variables
from fairlead_kvstore.blockstore import block_table
from fairlead_kvstore.indexer.service import IndexerService
from fairlead_kvstore.reader.reader_context import ReaderRuntime

_LOG = logging.getLogger("fairlead.indexer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT and returns 0; 2 when it cannot start or follow the fleet."""
    options = _parse_arguments(arguments)
    try:
        settings = read_settings(IndexerSettings, os.environ)
        configure_stderr_logging(_LOG, settings.log_level, unknown_variables(os.environ))
        _LOG.info("the indexer runs %s", "compiled" if is_compiled(block_table.__file__) else "interpreted")
        process_tuning.raise_open_file_limit()
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_run(options, settings))
    except (FairleadError, OSError) as error:
        print(f"fairlead-indexer: {error}", file=sys.stderr)
        return 2
    return 0


async def _run(options: argparse.Namespace, settings: IndexerSettings) -> None:
    loop, limits, clock = asyncio.get_running_loop(), Limits(), SystemClock()
    host, port = parse_address(options.listen, "--listen", "127.0.0.1:9090")
    source = cli_options.open_fleet_source(
        options,
        os.environ,
        Pacing(clock, random.random),
        agent="fairlead-indexer",
        limits=limits,
        report=lambda error: _LOG.warning("the last fleet stays in use: %s", error),
    )
    redis = options.redis or settings.redis_url
    if redis is None:
        raise SettingsError(
            "--redis: an indexer needs a Redis to write to",
            field="--redis",
            hint="use the gateways' URL, or set FAIRLEAD_REDIS_URL; a gateway without Redis reads events itself",
        )
    holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    secret, runtime = (settings.hash_secret or "").encode(), ReaderRuntime(loop, clock, random.random, limits)
    service = IndexerService(source, redis, holder, secret, os.environ, runtime)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop)
    await service.run(host, port, partial(print, flush=True))


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fairlead-indexer", description="Reads engines' KV events and writes the KV-cache index to Redis."
    )
    cli_options.add_fleet_arguments(parser)
    parser.add_argument("--redis", metavar="URL", help="Redis of the gateways (default: FAIRLEAD_REDIS_URL)")
    parser.add_argument(
        "--listen",
        default="127.0.0.1:0",
        metavar="HOST:PORT",
        help="address of /healthz, /readyz and /metrics (default: a free loopback port)",
    )
    return parser.parse_args(arguments)
