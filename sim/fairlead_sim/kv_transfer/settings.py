"""The part of the command line that says how KV goes from engine to engine. vLLM has these in ``--kv-transfer-config``."""

import argparse

from fairlead.errors import SettingsError
from fairlead_sim.runtime.settings import KvTransferSettings


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
