"""Config."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import FleetSource
from fairlead_gateway.http.tls import TlsCertificate
from fairlead_gateway.supervisor.key_file import KeyFile
from fairlead_gateway.supervisor.kv_index.token_source import TokenSource

if TYPE_CHECKING:  # without an engine that tells what it holds neither is loaded
    pass


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """What one gateway is to be. ``public`` is held and does not listen; ``private`` is the listening management port.
    ``autoscaler`` is the URL at which it hears hints; ``tokenizers`` is the folder of tokenizers; ``index_secret`` keys the hashes of
    an index in Redis, as its indexer's does."""

    public_socket: socket.socket
    management_socket: socket.socket
    fleet_source: FleetSource
    gateway_id: str
    hash_secret: bytes
    key_pepper: bytes | None = None
    key_file: KeyFile | None = None
    certificate: TlsCertificate | None = None
    redis_url: str | None = None
    credentials: EngineCredentials | None = None
    autoscaler_url: str | None = None
    manage_token: str | None = None
    manage_hosts: Sequence[str] = ()
    token_source: TokenSource = TokenSource.ENGINE
    tokenizer_folder: str = ""
    index_secret: bytes = b""
    environ: Mapping[str, str] = field(default_factory=dict)
