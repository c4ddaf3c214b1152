"""``python -m fairlead_gateway --fleet FILE --listen HOST:PORT``: where the real clock, loop, secret and signals come from."""

import argparse
import asyncio
import contextlib
import ctypes
import ipaddress
import itertools
import logging
import os
import resource
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from fairlead.clock import SystemClock
from fairlead.errors import FairleadError, SettingsError
from fairlead.fleetfile import FileFleetSource
from fairlead.limits import Limits
from fairlead.settings import GatewaySettings, read, unknown
from fairlead_gateway import memory, quiet_log
from fairlead_gateway.beside import Beside
from fairlead_gateway.gateway import Gateway
from fairlead_gateway.keys import Keys
from fairlead_gateway.loops import loop_factory
from fairlead_gateway.observing import observing, wanted
from fairlead_gateway.server import Address, Server
from fairlead_gateway.tls import Certificate
from fairlead_gateway.watch import Watch

_M_MMAP_THRESHOLD = -3  # of <malloc.h>
_LARGE_BLOCK_BYTES = 64 * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a gateway until SIGTERM or SIGINT; 0 after a clean drain, 2 when it cannot start."""
    options = _options(arguments)
    _more_files()
    _large_blocks_go_back()
    try:
        settings = read(GatewaySettings, os.environ)
        quiet_log.start(settings.log_level)
        keyed, tokened = options.keys is not None, settings.manage_token is not None
        listen = _address(options.listen, "--listen", open_to_all=not keyed and not options.insecure, fix="--keys FILE")
        manage = _address(
            options.manage,
            "--manage",
            open_to_all=not tokened and not options.insecure,
            fix="FAIRLEAD_MANAGE_TOKEN a value",
        )
        for line in unknown(os.environ):
            logging.getLogger("fairlead.gateway").warning("%s", line)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_run(options, listen, manage, settings))
    except (FairleadError, OSError) as error:
        print(f"fairlead-gateway: {error}", file=sys.stderr)
        return 2
    return 0


async def _run(options: argparse.Namespace, listen: Address, manage: Address, settings: GatewaySettings) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.set_exception_handler(quiet_log.loop_defect)
    clock, limits = SystemClock(), Limits()
    keys = _keys(options.keys, settings, limits)
    secret = settings.hash_secret.encode() if settings.hash_secret else secrets.token_bytes(32)
    prefix, count = secrets.token_hex(4), itertools.count(1)
    gateway_id = f"{socket.gethostname()}-{os.getpid()}"
    gateway = Gateway(
        clock=clock,
        limits=limits,
        loop=loop,
        secret=secret,
        new_id=lambda: f"req-{prefix}-{next(count):x}",
        keys=keys,
        environ=os.environ,
        memory=memory.reader(settings.memory_limit),
        observing=observing(wanted(settings), clock=clock, limits=limits, instance_id=gateway_id),
    )
    source = FileFleetSource(Path(options.fleet), clock, limits=limits)
    redis = options.redis or settings.redis_url
    beside = Beside(gateway, limits, gateway_id=gateway_id, redis=redis, reach=gateway.reach)
    watches = [Watch("the keys file", [keys.path], keys.load)] if keys is not None else []
    certificate = _certificate(options.tls_cert, options.tls_key)
    if certificate is not None:
        watches.append(Watch("the certificate", certificate.files, certificate.load))
    server = Server(
        gateway,
        source,
        listen=listen,
        manage=manage,
        beside=beside,
        watches=watches,
        certificate=certificate,
        token=settings.manage_token,
        hosts=options.manage_host,
        announce=_say,
    )
    await server.run(stop)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fairlead-gateway", description="An OpenAI-compatible gateway in front of the engines of a fleet."
    )
    parser.add_argument("--fleet", required=True, metavar="FILE", help="the fleet file; edits apply without a restart")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="the public port; 0 is a free one")
    parser.add_argument(
        "--manage", default="127.0.0.1:0", metavar="HOST:PORT", help="the management port (a free loopback port)"
    )
    parser.add_argument(
        "--manage-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a DNS name that the management port may be reached under; can be given again",
    )
    parser.add_argument(
        "--redis", metavar="URL", help="a Redis shared with other gateways; else FAIRLEAD_REDIS_URL; else none"
    )
    parser.add_argument(
        "--keys",
        metavar="FILE",
        help="who may call: digests of API keys, under FAIRLEAD_KEY_PEPPER; edits apply at once",
    )
    parser.add_argument("--tls-cert", metavar="FILE", help="PEM certificate chain of the public port; followed")
    parser.add_argument("--tls-key", metavar="FILE", help="its PEM key, without a passphrase; followed")
    parser.add_argument(
        "--insecure", action="store_true", help="allow listening beyond loopback without keys: anyone may call"
    )
    return parser.parse_args(arguments)


def _address(text: str, option: str, *, open_to_all: bool, fix: str) -> Address:
    """``HOST:PORT`` or ``[IPv6]:PORT``; only loopback where the port would be ``open_to_all``."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdigit() or int(port) > 65_535:
        raise SettingsError(f"{option}: HOST:PORT is expected", field=option, hint="for example 127.0.0.1:8080")
    host = "127.0.0.1" if host == "localhost" else host or "0.0.0.0"
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise SettingsError(f"{option}: the host must be an IP address or localhost", field=option) from None
    if not loopback and open_to_all:
        raise SettingsError(
            f"{option}: listening beyond loopback would serve anyone",
            field=option,
            hint=f"give {fix}, or --insecure to do it nevertheless",
        )
    return Address(host, int(port))


def _keys(path: str | None, settings: GatewaySettings, limits: Limits) -> Keys | None:
    """The keys that ``--keys`` names; they are read when the server starts."""
    if path is None:
        return None
    if settings.key_pepper is None:
        raise SettingsError(
            "--keys: FAIRLEAD_KEY_PEPPER is not set",
            field="FAIRLEAD_KEY_PEPPER",
            hint="set it to the secret under which the digests were made",
        )
    return Keys(Path(path), settings.key_pepper.encode(), limits)


def _certificate(certificate: str | None, key: str | None) -> Certificate | None:
    """What ``--tls-cert`` and ``--tls-key`` name; it is read when the server starts."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        missing = "--tls-cert" if certificate is None else "--tls-key"
        raise SettingsError(f"{missing}: a certificate and its key go together", field=missing, hint="give both files")
    return Certificate(Path(certificate), Path(key))


def _more_files() -> None:
    """A connection is a file; take as many as the system allows this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _large_blocks_go_back() -> None:
    """Keep glibc from holding on to the memory of large bodies: it raises the size from which blocks are given back to
    the system whenever one is freed."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
