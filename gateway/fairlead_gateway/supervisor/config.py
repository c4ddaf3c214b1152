"""The configuration of a gateway."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.audit import AuditLog
from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import FleetSource
from fairlead_gateway.http.tls_certificate import TlsCertificate
from fairlead_gateway.kv_index.supervisor.token_fetcher import TokenSource
from fairlead_gateway.supervisor.management.access.manage_tokens import ManageTokens

if TYPE_CHECKING:
    from fairlead_gateway.supervisor.file_parsing.client import FileParser
    from fairlead_gateway.tenants.supervisor.access_service import AccessSources


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """The settings, sockets and credentials that a supervisor starts with.

    public_socket: bound, and not listening.
    management_socket: listening.
    access: the sources of API keys and tenants; None if no API key is required.
    file_parser: parses the files of fleet and keys; None with a cluster.
    redis_url: None for a gateway without peers.
    manage_token: goes to the autoscaler with hints.
    manage_tokens: who may use the management API.
    manage_token_file: further ones; None: there is none.
    audit_log: None: changes are not recorded.
    autoscaler_url: where hints of `scale_from_zero` go.
    index_secret: keys the hashes of a KV-cache index in Redis; the indexer has the same.
    usage_folder: where the ledger is; None for a gateway without one.
    gateway_addresses: where all gateways are; empty: idempotency keys stay within this one.
    environ: environment variables, from which the API keys of engines are read.
    """

    public_socket: socket.socket
    management_socket: socket.socket
    fleet_source: FleetSource
    gateway_id: str
    hash_secret: bytes
    key_pepper: bytes | None = None
    access: "AccessSources | None" = None
    file_parser: "FileParser | None" = None
    certificate: TlsCertificate | None = None
    redis_url: str | None = None
    credentials: EngineCredentials | None = None
    autoscaler_url: str | None = None
    manage_token: str | None = None
    manage_tokens: ManageTokens = field(default_factory=lambda: ManageTokens(None))
    manage_token_file: Path | None = None
    audit_log: AuditLog | None = None
    manage_hosts: Sequence[str] = ()
    token_source: TokenSource = TokenSource.ENGINE
    index_secret: bytes = b""
    usage_folder: Path | None = None
    gateway_addresses: Sequence[tuple[str, int]] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
