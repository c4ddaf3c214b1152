"""Limits of the Kubernetes client, sleeping and hung engines, audit logs, and the autoscaler."""

from dataclasses import dataclass

from fairlead.limits.limit_field import limit


@dataclass(frozen=True)
class KubeLimits:
    """Limits of the Kubernetes client and its events."""

    kube_connect_seconds: float = limit(5.0, "TCP and TLS to the Kubernetes API server")
    kube_response_seconds: float = limit(30.0, "a response of the API server, each page of a list; watches have no end")
    kube_response_bytes: int = limit(256 * 1024 * 1024, "a response of the API server, except pages of lists")
    kube_page_bytes: int = limit(
        32 * 1024 * 1024, "a page of a list; one with more is requested with fewer objects; 500 pods have some 5 MB"
    )
    kube_event_bytes: int = limit(16 * 1024 * 1024, "one event of a watch; etcd takes objects of about 1.5 MB")
    kube_attempts: int = limit(5, "attempts of a request to the API server before it fails")
    kube_pause_seconds: float = limit(0.2, "first pause between them; doubles each time, half of it jitter")


@dataclass(frozen=True)
class SleepLimits:
    """Limits of putting engines to sleep."""


@dataclass(frozen=True)
class AuditLimits:
    """Limits of the audit log of each process, and of access to the management port."""

    manage_tokens: int = limit(10_000, "tokens in the file of management tokens")
    audit_recent: int = limit(4_096, "audit records in the memory of a process, which `/api/audit` answers")
    audit_pending: int = limit(
        16_384, "audit records that wait for a disk; the oldest of more are lost, counted and reported"
    )
    audit_file_bytes: int = limit(16 * 1024 * 1024, "one audit file; then the next begins")
    audit_file_seconds: float = limit(86_400.0, "age at which the next audit file begins")
    audit_files: int = limit(64, "audit files of one process; the oldest of more are removed")
    audit_keep_seconds: float = limit(400 * 86_400.0, "age of the last line of a file at which it is removed")
    audit_answer: int = limit(1_000, "audit records in one answer of `/api/audit`")
    audit_read: int = limit(100_000, "audit records that `fairlead audit` shows of a folder, the newest ones")
    audit_repeat_seconds: float = limit(
        300.0, "equal reads of the management API by the same token are one record in this time, with their number"
    )
    audit_repeats: int = limit(1_024, "different reads that are counted so at once; the next are recorded singly")


@dataclass(frozen=True)
class HungEngineLimits:
    """Limits of the replacement of engines that hang."""

    hung_engine_grace_seconds: float = limit(
        60.0, "an engine that has answered no request for this long after its ejection is restarted by local mode"
    )
    hung_engine_poll_seconds: float = limit(5.0, "interval at which local mode asks its gateway about such engines")
    hung_poll_seconds: float = limit(15.0, "interval at which the operator reads what gateways report of engines")
    canary_poll_seconds: float = limit(15.0, "interval at which the operator compares a canary with what runs")
    hung_read_seconds: float = limit(5.0, "a gateway whose report takes longer is missing, and does not vote")
    hung_fleet_bytes: int = limit(16 * 1024 * 1024, "a gateway's report; one with 4,096 engines has about 6 MB")
    hung_gateways: int = limit(256, "gateways that are read; the first ones by name")
    hung_concurrent_reads: int = limit(4, "reports that are read at the same time, which bounds their memory")
    hung_pods_per_restart: int = limit(
        10, "one of so many pods of a pool is restarted at a time, at least one: gateways may be wrong about many"
    )
    hung_stop_seconds: int = limit(
        30, "from the deletion of a pod that hangs to SIGKILL; there is nothing to drain, and it has devices"
    )


@dataclass(frozen=True)
class AutoscalerLimits:
    """Limits of the autoscaler."""

    autoscaler_read_seconds: float = limit(2.0, "a gateway whose metrics take longer is missing from the observation")
    autoscaler_page_bytes: int = limit(
        64 * 1024 * 1024, "a gateway's metrics page; one with 4,096 engines has about 12 MB"
    )
    autoscaler_gateways: int = limit(256, "gateways that are scraped; a warning names the number of others")
    autoscaler_carry_forward_seconds: float = limit(
        60.0, "the last values of a missing gateway are used this long, then it counts as gone"
    )
    autoscaler_tick_seconds: float = limit(5.0, "interval of decisions for all models")
    autoscaler_min_tick_seconds: float = limit(0.2, "minimum interval, whatever the number of hints")
    autoscaler_hinted_ticks_per_minute: int = limit(
        12, "additional ticks per minute because of hints, as many as without: a flood keeps half of the history"
    )
    autoscaler_cluster_seconds: float = limit(
        10.0, "until the scale targets are read, or a replica count is written; then the tick goes on without"
    )
    autoscaler_ring_bytes: int = limit(32 * 1024 * 1024, "ticks kept in memory: two hours of ten small models")
    autoscaler_file_bytes: int = limit(16 * 1024 * 1024, "one file of a recording; the next follows")
    autoscaler_files: int = limit(32, "files of a recording; the oldest are removed")
    autoscaler_ejected_seconds: float = limit(
        60.0, "an instance that every gateway has ejected for longer is no capacity, and is replaced"
    )
    autoscaler_signals_seconds: float = limit(10.0, "older signals of an engine count as missing")
