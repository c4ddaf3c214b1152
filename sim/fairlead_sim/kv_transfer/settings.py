"""The part of the command line that says how KV goes from engine to engine. vLLM has these in ``--kv-transfer-config``."""

import argparse
from dataclasses import dataclass

from fairlead.errors import SettingsError


@dataclass(frozen=True, slots=True)
class KvTransferSettings:
    """How KV goes from engine to engine: ``none``, ``nixl``, ``mooncake``, ``sglang`` or ``p2p``, and what that takes.

    ``recompute`` False = vLLM's default: a pull that fails is an error. Seconds are wall seconds, whatever the speed, except
    the transfer itself.
    """

    connector: str = "none"
    role: str = "kv_both"
    recompute: bool = False
    lease_seconds: float = 30.0  # NIXL: a prefill's blocks are kept this long for whoever decodes
    abort_seconds: float = 480.0  # Mooncake, SGLang: the same, and how long a decode waits for a prefill
    dead_peer_seconds: float = 2.0  # how long it takes to notice that the peer is gone; Mooncake: abort_seconds more
    bytes_per_token: int = 131_072
    bytes_per_second: float = 10e9
    host: str = "127.0.0.1"  # what a prefill engine tells others to connect to

    def seconds(self, tokens: int) -> float:
        """How long so many tokens travel."""
        return tokens * self.bytes_per_token / self.bytes_per_second


def add_kv_arguments(parser: argparse.ArgumentParser) -> None:
    """The switches of the hand-over."""
    default = KvTransferSettings()
    parser.add_argument(
        "--kv-connector", choices=("none", "nixl", "mooncake", "sglang", "p2p"), default=default.connector
    )
    parser.add_argument("--kv-role", choices=("kv_producer", "kv_consumer", "kv_both"), default=default.role)
    parser.add_argument(
        "--kv-load-failure-policy",
        choices=("fail", "recompute"),
        default="fail",
        help="what becomes of a request whose KV cannot be pulled: an error, as vLLM does by default, or a plain answer",
    )
    parser.add_argument(
        "--kv-lease-seconds", type=float, default=default.lease_seconds, help="NIXL: how long a prefill is kept"
    )
    parser.add_argument(
        "--kv-abort-seconds",
        type=float,
        default=default.abort_seconds,
        help="Mooncake and SGLang: how long a prefill is kept, and a decode waits for one",
    )
    parser.add_argument(
        "--kv-dead-peer-seconds",
        type=float,
        default=default.dead_peer_seconds,
        help="how long a pull takes to notice that its peer is gone",
    )
    parser.add_argument("--kv-bytes-per-token", type=int, default=default.bytes_per_token)
    parser.add_argument("--kv-bytes-per-second", type=float, default=default.bytes_per_second)
    parser.add_argument("--kv-host", default=default.host, help="the address that other engines are told to pull from")


def parse_kv_settings(arguments: argparse.Namespace) -> KvTransferSettings:
    """The settings of a parsed command line. Raises SettingsError naming the flag."""
    names = ("lease_seconds", "abort_seconds", "dead_peer_seconds", "bytes_per_token")
    for name in names:
        if getattr(arguments, f"kv_{name}") < 0:
            raise SettingsError("must not be negative", field=f"--kv-{name.replace('_', '-')}")
    if arguments.kv_bytes_per_second <= 0:
        raise SettingsError("must be positive", field="--kv-bytes-per-second")
    return KvTransferSettings(
        connector=arguments.kv_connector,
        role=arguments.kv_role,
        recompute=arguments.kv_load_failure_policy == "recompute",
        lease_seconds=arguments.kv_lease_seconds,
        abort_seconds=arguments.kv_abort_seconds,
        dead_peer_seconds=arguments.kv_dead_peer_seconds,
        bytes_per_token=arguments.kv_bytes_per_token,
        bytes_per_second=arguments.kv_bytes_per_second,
        host=arguments.kv_host,
    )
