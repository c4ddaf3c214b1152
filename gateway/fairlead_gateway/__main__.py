"""`python -m fairlead_gateway --fleet FILE --listen HOST:PORT`: the start of the supervisor.

The workers are started first and import their modules while this process imports its own. That is
why most imports are inside functions.
"""

import argparse
import contextlib
import ipaddress
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.errors import FairleadError, SettingsError
from fairlead.fleet import cli_options
from fairlead.limits import Limits
from fairlead.runtime.cli_options import parse_address
from fairlead.settings import GatewaySettings, read_settings, unknown_variables
from fairlead_gateway.http.sockets import ListenAddress
from fairlead_gateway.supervisor.worker_handle import PreforkedWorkers

if TYPE_CHECKING:
    from fairlead.fleet.model import FleetSource
    from fairlead.runtime.clock import Clock
    from fairlead_gateway.bearer_tokens.supervisor.key_service import IssuerKeyService
    from fairlead_gateway.http.tls_certificate import TlsCertificate
    from fairlead_gateway.supervisor.file_parsing.client import FileParser
    from fairlead_gateway.supervisor.management.access.manage_tokens import ManageTokens
    from fairlead_gateway.tenants.supervisor.access_service import AccessSources, TenantSource
    from fairlead_gateway.tenants.supervisor.tenant_watch import RevocationWatch


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a gateway until SIGTERM or SIGINT.

    Returns 0 after a clean drain, 1 if the drain was cut short, 2 if the gateway cannot start.
    """
    options = _parse_arguments(arguments)
    try:
        settings = read_settings(GatewaySettings, os.environ)
        has_keys = options.keys is not None or options.tenants is not None or options.kube_tenants
        has_manage_token = settings.manage_token is not None or settings.manage_tokens_file is not None
        listen = _parse_address(
            options.listen,
            "--listen",
            open_to_all=not has_keys and not options.insecure,
            fix="--keys FILE or --tenants FILE",
        )
        manage = _parse_address(
            options.manage,
            "--manage",
            open_to_all=not has_manage_token and not options.insecure,
            fix="FAIRLEAD_MANAGE_TOKEN a value",
        )
        limits = replace(Limits(), **settings.limits())
        workers = _parse_worker_count(options.workers, limits)
        with listen.reserve() as public_socket, manage.bind() as management_socket:
            has_redis = options.redis is not None or settings.redis_url is not None
            preforked = PreforkedWorkers(workers, inherits_stdout=settings.access_log == "-", has_peers=has_redis)
            try:
                return _run(options, settings, limits, public_socket, management_socket, preforked)
            finally:
                preforked.close()
    except (FairleadError, OSError) as error:
        print(f"fairlead-gateway: {error}", file=sys.stderr)
        return 2


def _run(
    options: argparse.Namespace,
    settings: GatewaySettings,
    limits: Limits,
    public_socket: socket.socket,
    management_socket: socket.socket,
    preforked: PreforkedWorkers,
) -> int:
    with _file_parser(options, limits) as parser:
        import asyncio
        import logging

        from fairlead.audit.log import AuditLog, parse_audit_options
        from fairlead.engines.credentials import EngineCredentials
        from fairlead.runtime import nonblocking_log, process_tuning
        from fairlead.runtime.clock import SystemClock
        from fairlead_gateway.idempotency.supervisor.gateway_addresses import parse_gateway_addresses
        from fairlead_gateway.kv_index.supervisor.token_fetcher import parse_token_source
        from fairlead_gateway.supervisor import scale_from_zero
        from fairlead_gateway.supervisor.config import GatewayConfig
        from fairlead_gateway.supervisor.supervisor import Supervisor

        process_tuning.deny_inspection()  # the workers run as the same user, and parse what clients send
        process_tuning.raise_open_file_limit()  # every engine that hangs in a scrape uses one
        process_tuning.tune_malloc()
        nonblocking_log.start_logging(settings.log_level)
        for line in unknown_variables(os.environ):
            logging.getLogger("fairlead.gateway").warning("%s", line)
        _validate_worker_settings(settings)
        clock, gateway_id = SystemClock(), f"{socket.gethostname()}-{os.getpid()}"
        audit_options = parse_audit_options(settings.audit_log, settings.audit_dir)
        plan = GatewayConfig(
            public_socket=public_socket,
            management_socket=management_socket,
            fleet_source=_fleet_source(options, clock, limits, parser),
            gateway_id=gateway_id,
            hash_secret=settings.hash_secret.encode() if settings.hash_secret else os.urandom(32),
            key_pepper=settings.key_pepper.encode() if settings.key_pepper else None,
            access=_access_sources(options, settings, clock, limits, parser),
            file_parser=parser,
            certificate=_certificate_files(options.tls_cert, options.tls_key),
            redis_url=options.redis or settings.redis_url,
            credentials=EngineCredentials(os.environ, clock.now),
            autoscaler_url=scale_from_zero.check_autoscaler_url(settings.autoscaler_url)
            if settings.autoscaler_url
            else None,
            manage_token=settings.manage_token,
            manage_tokens=_manage_tokens(settings),
            manage_token_file=Path(settings.manage_tokens_file) if settings.manage_tokens_file else None,
            audit_log=AuditLog("gateway", gateway_id, clock, audit_options),
            manage_hosts=options.manage_host,
            token_source=parse_token_source(settings.links),
            index_secret=(settings.hash_secret or "").encode(),
            usage_folder=Path(settings.usage_dir) if settings.usage_dir else None,
            gateway_addresses=parse_gateway_addresses(options.gateway_addresses),
            environ=os.environ,
        )

        async def serve() -> int:
            return await Supervisor(plan, preforked, clock=clock, limits=limits, announce=_announce).run()

        return asyncio.run(serve())


def _validate_worker_settings(settings: GatewaySettings) -> None:
    """Raises SettingsError for what the workers would reject, so that it is reported once."""
    from fairlead_gateway.proxy import memory_pressure

    memory_pressure.memory_share_reader(settings.memory_limit)
    if settings.client_hosts is not None or settings.cors_origins is not None:
        from fairlead_gateway.proxy.cors import parse_cors

        parse_cors(settings, has_api_keys=False)
    if settings.changing_text is not None:
        from fairlead_gateway.tenants.worker.tenant_policy import parse_changing_text

        parse_changing_text(settings.changing_text)
    if _observability_settings(settings) != _observability_settings(GatewaySettings()):
        from fairlead_gateway.telemetry.worker.settings import parse_observability_settings

        parse_observability_settings(settings)


def _observability_settings(settings: GatewaySettings) -> tuple[str | None, ...]:
    return (settings.access_log, settings.access_log_clients, settings.trace_endpoint, settings.trace_sample)


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fairlead-gateway",
        description="An OpenAI-compatible gateway in front of the engines of a fleet.",
        formatter_class=_help_formatter,
    )
    cli_options.add_fleet_arguments(parser)
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
    parser.add_argument(
        "--tenants",
        action="append",
        metavar="FILE",
        help="teams and applications that may call, as ModelTenant documents with digests of their keys; edits apply at "
        "once; can be given again",
    )
    parser.add_argument(
        "--kube-tenants", action="store_true", help="the ModelTenants of the cluster may call; with --kube"
    )
    parser.add_argument(
        "--revoked",
        metavar="FILE",
        help="digests of keys that are refused although another source lists them, one on each line; edits apply at once",
    )
    parser.add_argument(
        "--kube-revoked",
        metavar="NAME",
        help="a ConfigMap of the gateway's namespace with such a list, in its entry revoked; with --kube",
    )
    parser.add_argument(
        "--token-issuers",
        metavar="FILE",
        help="issuers whose bearer tokens (JWT) are accepted in place of API keys; edits apply at once",
    )
    parser.add_argument(
        "--workers", default="1", metavar="N", help="processes that carry requests; one more looks after them (1)"
    )
    parser.add_argument(
        "--gateway-addresses",
        metavar="HOST:PORT,...",
        help="the public ports of all gateways before the same models, among which equal idempotency keys meet; a DNS name "
        "stands for all its addresses (none: each gateway keeps its own)",
    )
    parser.add_argument(
        "--tls-cert", metavar="FILE", help="PEM certificate chain of the public port; reloaded when the file changes"
    )
    parser.add_argument(
        "--tls-key", metavar="FILE", help="PEM key of --tls-cert, without a passphrase; reloaded when it changes"
    )
    parser.add_argument(
        "--insecure", action="store_true", help="allow listening beyond loopback without keys: anyone may call"
    )
    return parser.parse_args(arguments)


def _help_formatter(prog: str) -> argparse.HelpFormatter:
    """Returns argparse's formatter with its own width.

    Why: it would import `shutil` to learn the width, for each option and without any help: 0.6 MB.
    """
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return argparse.HelpFormatter(prog, width=int(columns) - 2)
    try:
        width = os.get_terminal_size(1).columns
    except OSError:
        width = 0
    return argparse.HelpFormatter(prog, width=(width or 80) - 2)


def _parse_address(text: str, option: str, *, open_to_all: bool, fix: str) -> ListenAddress:
    """Parses `HOST:PORT` or `[IPv6]:PORT`. Raises unless a port that is `open_to_all` is on
    loopback.
    """
    host, port = parse_address(text, option, "127.0.0.1:8080")
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
    return ListenAddress(host, port)


def _parse_worker_count(text: str, limits: Limits) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
    if not 1 <= number <= limits.workers:
        raise SettingsError(
            f"--workers: {text!r} is not a number from 1 to {limits.workers}",
            field="--workers",
            hint="one for each processor that the gateway may use",
        )
    if number > 1 and sys.platform != "linux":
        raise SettingsError(
            "--workers: more than one needs Linux",
            field="--workers",
            hint="other kernels give all connections to one worker",
        )
    return number


def _fleet_source(
    options: argparse.Namespace, clock: "Clock", limits: Limits, parser: "FileParser | None"
) -> "FleetSource":
    """Returns what follows the fleet, by `--fleet` or `--kube`."""
    import random

    from fairlead.fleet.file_source import FileFleetSource
    from fairlead.runtime.clock import Pacing

    if parser is not None:
        return FileFleetSource(Path(options.fleet), clock, limits=limits, parse=parser.parse_fleet)
    pacing = Pacing(clock, random.random)
    from fairlead.fleet.kubernetes.options import open_kube_source

    source = open_kube_source(options.kube, os.environ, pacing, agent="fairlead-gateway", limits=limits)
    source.follows_claimants = True
    return source


@contextlib.contextmanager
def _file_parser(options: argparse.Namespace, limits: Limits) -> "Iterator[FileParser | None]":
    """Starts the process that parses the files of fleet and keys, and ends it; None with a cluster.

    Why none: what follows a cluster has the parsers in memory.
    """
    if options.fleet is None:
        yield None
        return
    from fairlead_gateway.supervisor.file_parsing.client import FileParser

    with contextlib.closing(FileParser(limits, os.environ)) as parser:
        parser.start()
        yield parser


def _access_sources(
    options: argparse.Namespace,
    settings: GatewaySettings,
    clock: "Clock",
    limits: Limits,
    parser: "FileParser | None",
) -> "AccessSources | None":
    """Returns the sources of API keys and tenants; files are read when the gateway starts."""
    given = {"--keys": options.keys, "--tenants": options.tenants, "--kube-tenants": options.kube_tenants or None}
    first = next((option for option, value in given.items() if value is not None), None)
    if first is None:
        for option, value in (
            ("--revoked", options.revoked),
            ("--kube-revoked", options.kube_revoked),
            ("--token-issuers", options.token_issuers),
        ):
            if value is not None:
                raise SettingsError(
                    f"{option}: this gateway asks for no API key", field=option, hint="give --keys or --tenants, too"
                )
        return None
    if settings.key_pepper is None:
        raise SettingsError(
            f"{first}: FAIRLEAD_KEY_PEPPER is not set",
            field="FAIRLEAD_KEY_PEPPER",
            hint="set it to the secret under which the digests were made",
        )
    from fairlead_gateway.tenants.supervisor.access_service import AccessSources
    from fairlead_gateway.tenants.supervisor.tenant_file import KeyFile, RevocationFile

    key_parser = None if parser is None else parser.parse_keys
    return AccessSources(
        None if options.keys is None else KeyFile(Path(options.keys), limits, key_parser),
        _tenant_sources(options, clock, limits, parser),
        None if options.revoked is None else RevocationFile(Path(options.revoked)),
        _token_issuers(options.token_issuers, clock, limits),
        _revocation_watch(options, clock, limits),
    )


def _revocation_watch(options: argparse.Namespace, clock: "Clock", limits: Limits) -> "RevocationWatch | None":
    if options.kube_revoked is None:
        return None
    _require_cluster(options, "--kube-revoked", "give --kube, or --revoked FILE")
    import random

    from fairlead.runtime.clock import Pacing
    from fairlead_gateway.tenants.supervisor.tenant_watch import open_revocation_watch

    return open_revocation_watch(os.environ, options.kube_revoked, Pacing(clock, random.random), limits)


def _require_cluster(options: argparse.Namespace, option: str, hint: str) -> None:
    if options.kube is None:
        raise SettingsError(f"{option}: there is no cluster", field=option, hint=hint)


def _token_issuers(path: str | None, clock: "Clock", limits: Limits) -> "IssuerKeyService | None":
    """Returns what follows the key sets of the issuers in a file."""
    if path is None:
        return None
    import importlib.util

    from fairlead_gateway.bearer_tokens.supervisor.key_service import IssuerKeyService

    if importlib.util.find_spec("cryptography") is None:
        raise SettingsError(
            "--token-issuers: the package cryptography is not installed",
            field="--token-issuers",
            hint='install the extra: pip install "fairlead-serving[tokens]"',
        )
    return IssuerKeyService(Path(path), clock, limits)


def _tenant_sources(
    options: argparse.Namespace, clock: "Clock", limits: Limits, parser: "FileParser | None"
) -> "list[TenantSource]":
    sources: list[TenantSource] = []
    if options.tenants is not None:
        from fairlead_gateway.tenants.supervisor.tenant_file import TenantFile

        parse = None if parser is None else parser.parse_tenants
        sources += [TenantFile(Path(file), limits, parse) for file in options.tenants]
    if options.kube_tenants:
        _require_cluster(options, "--kube-tenants", "give --kube, or --tenants FILE")
        import random

        from fairlead.runtime.clock import Pacing
        from fairlead_gateway.tenants.supervisor.tenant_watch import open_tenant_watch

        sources.append(open_tenant_watch(os.environ, Pacing(clock, random.random), limits))
    return sources


def _manage_tokens(settings: GatewaySettings) -> "ManageTokens":
    """Returns the accepted management tokens, without those of the file."""
    from fairlead_gateway.supervisor.management.access.manage_tokens import ManageTokens

    if settings.manage_tokens_file is None:
        return ManageTokens(settings.manage_token)
    if settings.key_pepper is None:
        raise SettingsError(
            "FAIRLEAD_MANAGE_TOKENS_FILE: FAIRLEAD_KEY_PEPPER is not set",
            field="FAIRLEAD_KEY_PEPPER",
            hint="set it to the secret under which the digests were made",
        )
    return ManageTokens(settings.manage_token, settings.key_pepper.encode())


def _certificate_files(certificate: str | None, key: str | None) -> "TlsCertificate | None":
    """Returns what `--tls-cert` and `--tls-key` name; it is read when the gateway starts."""
    from fairlead_gateway.http.tls_certificate import TlsCertificate

    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        missing = "--tls-cert" if certificate is None else "--tls-key"
        raise SettingsError(f"{missing}: a certificate and its key go together", field=missing, hint="give both files")
    return TlsCertificate(Path(certificate), Path(key))


def _announce(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
