"""Limits of gateway processes: fleet, memory, workers, logs, Redis and peers."""

from dataclasses import dataclass

from fairlead.limits.limit_field import limit


@dataclass(frozen=True)
class FleetLimits:
    """Limits of the fleet and of the files that describe it."""

    models: int = limit(1_000, "models in a fleet; namespaces of a cluster share them max-min")
    instances: int = limit(4_096, "instances in a fleet; namespaces of a cluster share them max-min")
    adapters: int = limit(20_000, "LoRA adapters in a fleet")
    routes: int = limit(1_000, "routes in a fleet; the oldest ones of a cluster count")
    fleet_file_bytes: int = limit(16 * 1024 * 1024, "a fleet or manifest file")
    mirror_blocks_per_instance: int = limit(262_144, "prefix blocks that the prefix map remembers per instance")


@dataclass(frozen=True)
class TelemetryLimits:
    """Limits of metrics, logs, traces and engine scrapes."""

    scrape_seconds: float = limit(2.0, "interval of scrapes of each engine's metrics page")
    scrape_timeout_seconds: float = limit(1.5, "an engine that takes longer is scraped again in the next round")
    scrape_bytes: int = limit(4 * 1024 * 1024, "a metrics page; real ones have about 90 kB")
    access_log_lines_pending: int = limit(1_000, "lines that wait for the access log; the next are dropped and counted")
    spans_pending: int = limit(1_000, "spans that wait for the collector; the next are dropped and counted")
    span_batch_seconds: float = limit(0.5, "from the first span of a batch until it is sent")
    memory_check_seconds: float = limit(0.25, "interval at which a process checks its memory")


@dataclass(frozen=True)
class ProcessLimits:
    """Limits of a gateway's workers and of the channel between supervisor and workers."""

    workers: int = limit(64, "worker processes of one gateway; more only compete for processors")


@dataclass(frozen=True)
class LedgerLimits:
    """Limits of usage records and of the ledger's files."""


@dataclass(frozen=True)
class PeerLimits:
    """Limits of Redis and of the exchange with other gateways."""

    redis_timeout_seconds: float = limit(1.0, "an exchange with Redis; no request waits for one")
    redis_reply_bytes: int = limit(
        256 * 1024 * 1024, "one reply of Redis; a larger one ends the connection. Streams of all models have less"
    )
    redis_connect_seconds: float = limit(3.0, "the same for a new connection, which takes several exchanges")
    redis_ping_seconds: float = limit(2.0, "interval of pings to an idle Redis")
    redis_pause_seconds: float = limit(
        1.5, "longest pause between attempts to reach Redis: it is used again within 2 s of its return"
    )
