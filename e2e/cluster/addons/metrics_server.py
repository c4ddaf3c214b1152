"""metrics-server, on request, for ``kubectl top`` and HorizontalPodAutoscalers: a process here
behind an aggregated API."""

from typing import Any

from e2e.cluster.nodes.control_plane import ControlPlane
from e2e.cluster.nodes.network import GATEWAY
from e2e.cluster.run_record import RunRecord
from e2e.cluster.running_cluster import RunningCluster

NAME = "metrics-server"
_PORT = 4443
_READY_SECONDS = 120.0


def start(record: RunRecord, cluster: RunningCluster, plane: ControlPlane) -> None:
    """Until it has measured the node once."""
    flags = {
        "kubeconfig": cluster.kubeconfig,
        "authentication-kubeconfig": cluster.kubeconfig,
        "authorization-kubeconfig": cluster.kubeconfig,
        "kubelet-insecure-tls": "true",  # kubelet signs its certificate itself
        "kubelet-preferred-address-types": "InternalIP",
        "metric-resolution": "10s",
        "kubelet-request-timeout": "5s",  # must be below the resolution
        "bind-address": GATEWAY,
        "secure-port": _PORT,
        "cert-dir": record.run / NAME,
    }
    record.start(NAME, [cluster.binaries / NAME, *(f"--{name}={value}" for name, value in flags.items())])
    cluster.apply(*_manifests())
    measured = "/apis/metrics.k8s.io/v1beta1/nodes/local"
    record.wait("metrics of the node", _READY_SECONDS, lambda: plane.get_text(measured) is not None)


def _manifests() -> list[dict[str, Any]]:
    labels = {"kubernetes.io/service-name": NAME}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": "kube-system"},
        "spec": {"ports": [{"name": "https", "port": 443}]},
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{NAME}-host", "namespace": "kube-system", "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [GATEWAY], "conditions": {"ready": True}}],
        "ports": [{"name": "https", "port": _PORT}],
    }
    api = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": "v1beta1.metrics.k8s.io"},
        "spec": {
            "service": {"name": NAME, "namespace": "kube-system"},
            "group": "metrics.k8s.io",
            "version": "v1beta1",
            "insecureSkipTLSVerify": True,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
        },
    }
    return [service, endpoints, api]
