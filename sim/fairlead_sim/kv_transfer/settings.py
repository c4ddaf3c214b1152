"""Settings and command line of KV transfer; vLLM has these in ``--kv-transfer-config``."""

import argparse
from dataclasses import dataclass

from fairlead.errors import SettingsError


@dataclass(frozen=True, slots=True)
class KvTransferSettings:
    """The settings of one connector: ``none``, ``nixl``, ``mooncake``, ``sglang`` or ``p2p``.

    - recompute: False is vLLM's default, by which a failed pull is an error.
    - lease_seconds, abort_seconds, dead_peer_seconds: wall-clock seconds.
    """

    connector: str = "none"
    role: str = "kv_both"
    recompute: bool = False
    lease_seconds: float = 30.0  # NIXL: how long a prefill's blocks are kept
    abort_seconds: float = 480.0  # Mooncake, SGLang: the same, and the wait of a decode
    dead_peer_seconds: float = 2.0  # until a dead peer is noticed; Mooncake: plus abort_seconds
    bytes_per_token: int = 131_072
    bytes_per_second: float = 10e9
    host: str = "127.0.0.1"  # address that a prefill engine gives to others

    def seconds(self, tokens: int) -> float:
        """Returns the transfer time of this many tokens, in seconds at speed 1."""
        return tokens * self.bytes_per_token / self.bytes_per_second


def add_kv_arguments(parser: argparse.ArgumentParser) -> None:
    default = KvTransferSettings()
    parser.add_argument(
        "--kv-connector", choices=("none", "nixl", "mooncake", "sglang", "p2p"), default=default.connector
    )
    parser.add_argument("--kv-role", choices=("kv_producer", "kv_consumer", "kv_both"), default=default.role)
    parser.add_argument(
        "--kv-load-failure-policy",
        choices=("fail", "recompute"),
        default="fail",
        help="the outcome of a request whose KV cannot be pulled: an error, as in vLLM by default, or a plain answer",
    )
    parser.add_argument(
        "--kv-lease-seconds",
        type=float,
        default=default.lease_seconds,
        help="NIXL: seconds for which a prefill is kept",
    )
    parser.add_argument(
        "--kv-abort-seconds",
        type=float,
        default=default.abort_seconds,
        help="Mooncake and SGLang: seconds for which a prefill is kept, and a decode waits for one",
    )
    parser.add_argument(
        "--kv-dead-peer-seconds",
        type=float,
        default=default.dead_peer_seconds,
        help="seconds until a pull notices that its peer has crashed",
    )
    parser.add_argument("--kv-bytes-per-token", type=int, default=default.bytes_per_token)
    parser.add_argument("--kv-bytes-per-second", type=float, default=default.bytes_per_second)
    parser.add_argument("--kv-host", default=default.host, help="the address from which other engines pull")


def parse_kv_settings(arguments: argparse.Namespace) -> KvTransferSettings:
    """Returns the settings. Raises SettingsError with the flag's name."""
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
