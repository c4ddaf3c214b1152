"""An installation in a cluster as its user reaches it: ports of its pods, values of its Secrets.

Pods and Secrets are reached through the API server with the rights of the kubeconfig, a Redis
outside of the cluster directly. The verbs that talk to a gateway, an autoscaler or Redis use it.
"""

import asyncio
import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from fairlead.errors import BadInput
from fairlead.kube.client import KubeApi
from fairlead.kube.resources import (
    DEPLOYMENTS,
    MODEL_DEPLOYMENTS,
    PODS,
    SECRETS,
    SERVICES,
    Manifest,
    is_deleting,
    is_ready,
    label_selector,
    name_of,
    uid_of,
)
from fairlead.kube.transport.kubeconfig import ClusterConfig
from fairlead_cli.cluster.access.connection import connect, resolve_access
from fairlead_cli.cluster.access.port_forward import PodPort, PortForwarder
from fairlead_cli.cluster.components import AUTOSCALER, GATEWAY, INDEXER, revocation_list, with_component
from fairlead_cli.cluster.facts_collector import list_objects, list_own_objects
from fairlead_cli.cluster.object_fields import (
    MissingValue,
    arguments_of,
    containers_of,
    mounted_secrets,
    namespace_name,
    pod_spec_of,
    spec_of,
    value_or_missing,
)
from fairlead_cli.cluster.pod_http import GATEWAY_PORT, HTTP_PORT, pod_port
from fairlead_cli.exit_codes import ClusterUnreachable
from fairlead_cli.target import ClusterOptions

_FIRST_KEY: Final = "first-key"
_KEYS_VOLUME: Final = "keys"
_REDIS_PORT: Final = 6379


@dataclass(frozen=True, slots=True)
class Installation:
    """One installation: its Deployments, its pods, and a forwarder of their ports."""

    access: ClusterConfig
    namespace: str
    deployments: Sequence[Manifest]
    pods: Sequence[Manifest]
    forwarder: PortForwarder
    _secrets: dict[str, Mapping[str, str]] = field(default_factory=dict, repr=False)

    def gateway_pods(self) -> Sequence[Manifest]:
        """Returns the ready gateways. Raises ClusterUnreachable when there is none."""
        return self._ready_pods(GATEWAY)

    def autoscaler_pods(self) -> Sequence[Manifest]:
        """Returns the ready autoscalers. Raises ClusterUnreachable when there is none."""
        return self._ready_pods(AUTOSCALER)

    def manage_url(self, gateway: Manifest) -> str:
        return f"http://{self._forward(gateway, pod_port(gateway, 'manage', GATEWAY_PORT))}"

    def autoscaler_url(self, autoscaler: Manifest) -> str:
        return f"http://{self._forward(autoscaler, pod_port(autoscaler, 'http', HTTP_PORT))}"

    def client_url(self) -> str:
        """Returns the URL for client requests to a gateway, forwarded to this machine.

        Raises ClusterUnreachable when no gateway is ready.
        """
        scheme = "https" if any(word.startswith("--tls-cert") for word in arguments_of(self._gateway())) else "http"
        gateway = self.gateway_pods()[0]
        return f"{scheme}://{self._forward(gateway, pod_port(gateway, 'http', HTTP_PORT))}"

    def manage_token(self) -> str | None:
        """Returns the management token. Raises BadInput without the right to read its Secret."""
        return self._variable(self._gateway(), "FAIRLEAD_MANAGE_TOKEN")

    def hash_secret(self) -> str:
        """Returns the secret of the prefix hashes. Raises BadInput without the right to read it."""
        return self._variable(self._gateway(), "FAIRLEAD_HASH_SECRET") or ""

    def key_pepper(self) -> str | None:
        """Returns the secret under which digests of API keys are made.

        It is None when gateways require no key. Raises BadInput without the right to read it.
        """
        return self._variable(self._gateway(), "FAIRLEAD_KEY_PEPPER")

    def revocation_list(self) -> str | None:
        """Returns the name of the ConfigMap with revoked keys; None if gateways watch none."""
        return revocation_list(self._gateway())

    def api_key(self) -> str | None:
        """Returns the first API key of the installation; None when gateways require none.

        Raises BadInput when it cannot be read.
        """
        for volume in pod_spec_of(self._gateway()).get("volumes") or []:
            secrets = mounted_secrets(volume)
            if volume.get("name") == _KEYS_VOLUME and secrets:
                name = secrets[0].name
                if key := self._secret(name).get(_FIRST_KEY):
                    return key
                raise BadInput(f"the Secret {self.namespace}/{name} has no API key", hint="set FAIRLEAD_API_KEY to one")
        return None

    def redis_url(self) -> str:
        """Returns the URL of the Redis with the index. A Service of the cluster is forwarded.

        Raises BadInput when there is none or when it cannot be forwarded, ClusterUnreachable when
        its Service has no ready pod.
        """
        owners = with_component(self.deployments, INDEXER) or with_component(self.deployments, GATEWAY)
        url = next((found for owner in owners if (found := self._variable(owner, "FAIRLEAD_REDIS_URL"))), None)
        if url is None:
            raise BadInput(f"the installation in {self.namespace} has no Redis", hint="name one with --redis")
        parts = urlsplit(url)
        service, namespace = _service_of(parts.hostname or "", self.namespace)
        if service is None:
            return url
        target = asyncio.run(self._service_pod(namespace, service, parts.port or _REDIS_PORT))
        if target is None:
            return url
        if parts.scheme != "redis":
            raise BadInput(
                f"{parts.scheme}://{parts.hostname} is inside the cluster and cannot be forwarded",
                hint="run this in the cluster, or name another address with --redis",
            )
        port = self.forwarder.open(target)
        login = parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{port}" if login else f"127.0.0.1:{port}"))

    def qualify_model(self, name: str) -> str:
        """Returns ``namespace/name`` for a model of the kubeconfig's namespace, else the name.

        Why: gateways know only one of several models of a name by its bare name.
        """
        namespace = self.access.namespace
        is_bare = "/" not in name
        return f"{namespace}/{name}" if is_bare and asyncio.run(self._has_model(namespace, name)) else name

    async def is_model_deleted(self, model_key: str) -> bool:
        """Returns whether the cluster has no ModelDeployment ``namespace/name``; False if that is
        unknown.
        """
        namespace, _, name = model_key.partition("/")
        async with connect(self.access) as (api, _):
            found = await value_or_missing(api.get(MODEL_DEPLOYMENTS, namespace, name))
        return isinstance(found, MissingValue) and found.is_absent

    async def read_pod_names(self, namespace: str) -> Mapping[str, str]:
        """Returns the pods of a namespace: uid → name. Empty without the right to list them."""
        async with connect(self.access) as (api, _):
            pods = await list_objects(api, PODS, namespace)
        return {} if isinstance(pods, MissingValue) else {uid_of(pod): name_of(pod) for pod in pods}

    def pod_names(self, namespace: str) -> Mapping[str, str]:
        return asyncio.run(self.read_pod_names(namespace))

    def _ready_pods(self, component: str) -> Sequence[Manifest]:
        pods = [pod for pod in with_component(self.pods, component) if not is_deleting(pod)]
        ready = [pod for pod in pods if is_ready(pod)]
        if not ready:
            count = f"{len(pods)} pods, none of them ready" if pods else "no pod"
            raise ClusterUnreachable(
                f"the {component} of the installation in {self.namespace} has {count}", hint="run `fairlead check`"
            )
        return ready

    def _gateway(self) -> Manifest:
        gateways = with_component(self.deployments, GATEWAY)
        if not gateways:
            raise ClusterUnreachable(
                f"the installation in {self.namespace} has no gateway", hint="run `fairlead check`"
            )
        return gateways[0]

    def _forward(self, pod: Manifest, port: int) -> str:
        return f"127.0.0.1:{self.forwarder.open(PodPort(namespace_name(pod), name_of(pod), port))}"

    def _variable(self, deployment: Manifest, name: str) -> str | None:
        """Returns the value of a Deployment's environment variable, also from a Secret; None if
        unset.
        """
        for container in containers_of(pod_spec_of(deployment)):
            for variable in container.get("env") or []:
                if variable.get("name") != name:
                    continue
                reference = (variable.get("valueFrom") or {}).get("secretKeyRef")
                if reference is None:
                    return str(variable.get("value") or "") or None
                return self._secret(str(reference["name"])).get(str(reference["key"]))
        return None

    def _secret(self, name: str) -> Mapping[str, str]:
        if name not in self._secrets:
            self._secrets[name] = asyncio.run(self._read_secret(name))
        return self._secrets[name]

    async def _read_secret(self, name: str) -> Mapping[str, str]:
        async with connect(self.access) as (api, _):
            secret = await value_or_missing(api.get(SECRETS, self.namespace, name))
        if isinstance(secret, MissingValue):
            raise _missing_error(f"the Secret {self.namespace}/{name} cannot be read", secret)
        data = secret.get("data") or {}
        return {key: base64.b64decode(value).decode("utf-8", "replace").strip() for key, value in data.items()}

    async def _has_model(self, namespace: str, name: str) -> bool:
        async with connect(self.access) as (api, _):
            return not isinstance(await value_or_missing(api.get(MODEL_DEPLOYMENTS, namespace, name)), MissingValue)

    async def _service_pod(self, namespace: str, name: str, port: int) -> PodPort | None:
        """Returns a ready pod behind a Service, with the port of its container; None without such a
        Service.

        Raises ClusterUnreachable when no pod is ready.
        """
        async with connect(self.access) as (api, _):
            service = await value_or_missing(api.get(SERVICES, namespace, name))
            if isinstance(service, MissingValue):
                if service.is_absent:
                    return None
                raise _missing_error(f"the Service {namespace}/{name} cannot be read", service)
            selector = label_selector(spec_of(service).get("selector") or {})
            pods = await list_objects(api, PODS, namespace, selector)
        if isinstance(pods, MissingValue):
            raise _missing_error(f"the pods of {namespace}/{name} cannot be listed", pods)
        ready = [pod for pod in pods if is_ready(pod) and not is_deleting(pod)]
        if not ready:
            raise ClusterUnreachable(f"the Service {namespace}/{name} has no ready pod", hint="run `fairlead check`")
        return PodPort(namespace, name_of(ready[0]), _target_port(service, ready[0], port))


def _service_of(host: str, namespace: str) -> tuple[str | None, str]:
    """Returns name and namespace of the Service behind a host name; name None for other hosts."""
    labels = host.split(".")
    if not host or host.replace(".", "").isdecimal() or ":" in host:
        return None, namespace
    if len(labels) <= 2 or labels[2] == "svc":
        return labels[0], labels[1] if len(labels) > 1 else namespace
    return None, namespace


def _target_port(service: Manifest, pod: Manifest, port: int) -> int:
    ports: Sequence[Mapping[str, Any]] = spec_of(service).get("ports") or []
    target = next((entry.get("targetPort") for entry in ports if entry.get("port") == port), None) or port
    return target if isinstance(target, int) else pod_port(pod, str(target), port)


def _missing_error(what: str, missing: MissingValue) -> BadInput | ClusterUnreachable:
    if missing.is_forbidden:
        return BadInput(
            f"{what}: {missing.reason}", hint="request this permission, or set the value in the environment"
        )
    return ClusterUnreachable(f"{what}: {missing.reason}", hint="run `fairlead check`")


@contextmanager
def open_installation(options: ClusterOptions) -> Iterator[Installation]:
    """Yields the installation of a cluster.

    Raises ClusterUnreachable when there is none, BadInput when there are several or when the user
    may not list its pods.
    """
    access = resolve_access(options)
    namespace, deployments, pods = asyncio.run(_find(access, options.install_namespace))
    with PortForwarder(access) as forwarder:
        yield Installation(access, namespace, deployments, pods, forwarder)


async def _find(access: ClusterConfig, namespace: str | None) -> tuple[str, Sequence[Manifest], Sequence[Manifest]]:
    async with connect(access) as (api, _):
        deployments = await _listed(api, DEPLOYMENTS, namespace)
        places = sorted({namespace_name(found) for found in with_component(deployments, GATEWAY)})
        if not places:
            where = f"in {namespace}" if namespace else "in the cluster"
            raise ClusterUnreachable(
                f"no gateway is installed {where}", hint="name its namespace with --install-namespace"
            )
        if len(places) > 1:
            raise BadInput(f"there are installations in {', '.join(places)}", hint="name one with --install-namespace")
        pods = await _listed(api, PODS, places[0])
    return places[0], [one for one in deployments if namespace_name(one) == places[0]], pods


async def _listed(api: KubeApi, resource: Any, namespace: str | None) -> Sequence[Manifest]:
    found = await list_own_objects(api, resource, namespace)
    if isinstance(found, MissingValue):
        hint = "name the namespace of the installation with --install-namespace"
        if found.is_forbidden:
            raise BadInput(f"the installation cannot be looked up: {found.reason}", hint=hint)
        raise ClusterUnreachable(f"the installation cannot be looked up: {found.reason}", hint=hint)
    return found
