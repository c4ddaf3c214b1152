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
class AuditLimits:
    """Limits of access to the management port."""

    manage_tokens: int = limit(10_000, "tokens in the file of management tokens")


@dataclass(frozen=True)
class AutoscalerLimits:
    """Limits of the autoscaler."""

    autoscaler_tick_seconds: float = limit(5.0, "interval of decisions for all models")
