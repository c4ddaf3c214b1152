"""The chart's values as types; values.yaml, values.schema.json and the README's table are generated
from them.

A value is added together with the template that honours it. In YAML its name is in camel case.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Names = list[Annotated[str, Field(min_length=1, max_length=253)]]
Count = Annotated[int, Field(ge=1, le=1000)]
Seconds = Annotated[int, Field(ge=1, le=3600)]
Port = Annotated[int, Field(ge=1, le=65535)]
Duration = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)$")]
LogLevel = Annotated[str, Field(pattern="^(debug|info|warning|error)$")]
FreeForm = dict[str, Any]
"""A part of a Kubernetes object that is passed on unchanged."""


class ValuesPart(BaseModel):
    """A section of the values; helm refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)


def _value(description: str, default: Any) -> Any:
    if isinstance(default, type):
        return Field(default_factory=default, description=description)
    return Field(default=default, description=description)


class Global(BaseModel):
    """Values shared with parent charts, which may have further fields."""

    model_config = ConfigDict(extra="allow", alias_generator=to_camel)
    image_registry: str = _value("registry of every image, for sites that mirror them; else each image's own", "")
    image_pull_secrets: Names = _value("names of pull secrets of the control plane's pods", [])


class Image(ValuesPart):
    registry: str = _value("where the image is; `global.imageRegistry` goes before", "serving.fairlead.io")
    tag: str = _value("its tag; the chart's `appVersion` when empty", "")
    digest: str = _value("`sha256:…` instead of a tag", "")
    pull_policy: Annotated[str, Field(pattern="^(Always|IfNotPresent|Never)$")] = _value(
        "when it is pulled", "IfNotPresent"
    )


class OperatorImage(Image):
    repository: str = _value("its name there", "operator")


class GatewayImage(Image):
    repository: str = _value("its name there", "gateway")


class IndexerImage(Image):
    repository: str = _value("its name there", "kvstore")


class AutoscalerImage(Image):
    repository: str = _value("its name there", "autoscaler")


class RedisImage(Image):
    repository: str = _value("its name there", "valkey")


class Placement(ValuesPart):
    """Node placement and priority of a component's pods."""

    node_selector: FreeForm = _value("labels of the nodes that may run it", {})
    tolerations: list[FreeForm] = _value("taints of nodes that it bears", [])
    affinity: FreeForm = _value("its affinity", {})
    priority_class_name: str = _value("its priority class", "")
    pod_annotations: FreeForm = _value("annotations of its pods", {})


def _resources(cpu: str, memory: str, limit: str) -> dict[str, Any]:
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": limit}}


class Operator(Placement):
    replicas: Count = _value("replicas, of which one leads", 2)
    image: OperatorImage = _value("its image", OperatorImage)
    resources: FreeForm = _value("its resources", _resources("50m", "128Mi", "512Mi"))
    reconcilers: Annotated[int, Field(ge=1, le=256)] = _value("models that are worked on at once", 8)
    resync: Duration = _value("how often all models are listed besides being watched", "60s")
    lease: Duration = _value("how long the leader may be silent before another replica takes over", "15s")
    capacity_grace: Duration = _value("how long pods may wait for a node before their model is `Stalled`", "10m")
    log_level: LogLevel = _value("`debug`, `info`, `warning` or `error`", "info")


class EngineImages(ValuesPart):
    vllm: str = _value("image of vLLM engines whose model names none", "")
    sglang: str = _value("of SGLang engines", "")
    sim: str = _value("of simulated engines; Fairlead's own of this version when empty", "")


class Engines(ValuesPart):
    images: EngineImages = _value("images of engines", EngineImages)
    pull_secrets: Names = _value(
        "names of pull secrets that every engine's pod gets; they lie in the models' namespaces", []
    )
    network_policies: bool = _value(
        "let only pods of the same model, and this chart's gateways and indexers, speak with engines", True
    )


class Tls(ValuesPart):
    secret: str = _value("a Secret of type `kubernetes.io/tls`; the public port is then HTTPS", "")


class Service(ValuesPart):
    type: Annotated[str, Field(pattern="^(ClusterIP|NodePort|LoadBalancer)$")] = _value("its type", "ClusterIP")
    port: Port = _value("its port", 80)
    annotations: FreeForm = _value("its annotations", {})


class Autoscaling(ValuesPart):
    enabled: bool = _value("let a HorizontalPodAutoscaler set the replicas", False)
    min_replicas: Count = _value("at least", 2)
    max_replicas: Count = _value("at most", 10)
    cpu_percent: Annotated[int, Field(ge=1, le=1000)] = _value(
        "the processor use, in percent of what is requested, to hold", 70
    )


class Trace(ValuesPart):
    endpoint: str = _value("an OpenTelemetry collector that takes OTLP over HTTP; without it no span is made", "")
    sample: Annotated[float, Field(ge=0, le=1)] = _value("share of the requests without a trace context to record", 0)


class Tokenizers(ValuesPart):
    claim: str = _value(
        "a PersistentVolumeClaim with `NAMESPACE/MODEL/tokenizer.json`: prompts of text are then tokenized next to the "
        "gateway, where engines tell what they hold; give it 200 MB of memory more for each large vocabulary",
        "",
    )


class Fleet(ValuesPart):
    models: list[FreeForm] = _value(
        "models and their engines, as in a fleet file, instead of the cluster's; edits apply without a restart", []
    )


class Gateway(Placement):
    replicas: Count = _value("replicas, where there is no autoscaling", 2)
    workers: Annotated[int, Field(ge=1, le=64)] = _value(
        "processes in each that carry requests: one for each processor", 1
    )
    image: GatewayImage = _value("its image", GatewayImage)
    resources: FreeForm = _value(
        "its resources; near the memory limit large bodies are refused", _resources("500m", "192Mi", "1Gi")
    )
    fleet: Fleet = _value("what it serves", Fleet)
    service: Service = _value("its Service", Service)
    tls: Tls = _value("HTTPS on its public port", Tls)
    autoscaling: Autoscaling = _value("its HorizontalPodAutoscaler", Autoscaling)
    leave_seconds: Seconds = _value("how long a terminating pod still takes requests, until no proxy sends it any", 5)
    log_level: LogLevel = _value("`debug`, `info`, `warning` or `error`", "info")
    access_log: bool = _value("write every request to the standard output as a line of JSON, without prompts", False)
    access_log_clients: bool = _value("with the addresses of clients", True)
    trace: Trace = _value("spans", Trace)
    tokenizers: Tokenizers = _value("tokenizers of models", Tokenizers)


class Indexer(Placement):
    enabled: bool = _value("run it where gateways have a Redis; without one each gateway indexes by itself", True)
    replicas: Count = _value("replicas, of which one reads each model", 2)
    image: IndexerImage = _value("its image", IndexerImage)
    resources: FreeForm = _value("its resources; a million cached blocks are 64 MB", _resources("100m", "128Mi", "1Gi"))
    log_level: LogLevel = _value("`debug`, `info`, `warning` or `error`", "info")


class Autoscaler(Placement):
    enabled: bool = _value("run it; it scales only models whose `autoscaling.mode` is `Auto`", True)
    replicas: Count = _value("replicas, of which one writes", 2)
    image: AutoscalerImage = _value("its image", AutoscalerImage)
    resources: FreeForm = _value("its resources", _resources("50m", "128Mi", "512Mi"))
    freeze: bool = _value("stop every change of a number of instances; what would be done is still said", False)
    guard: bool = _value(
        "hold it, by a ValidatingAdmissionPolicy, to the one annotation of pods and the one number that it writes", True
    )
    log_level: LogLevel = _value("`debug`, `info`, `warning` or `error`", "info")


class Auth(ValuesPart):
    enabled: bool = _value("ask callers for an API key; without it anyone who reaches the gateway may call", True)
    keys_secret: str = _value("a Secret of yours with `keys.yaml` and `pepper`; a first key is made when empty", "")


class Redis(ValuesPart):
    enabled: bool = _value("run one without persistence, for trials", True)
    url: Annotated[str, Field(pattern=r"^$|^(rediss?(\+sentinel|\+cluster)?|unix)://[^@]*$")] = _value(
        "the URL of your own Redis instead, where it takes no password: `redis://`, `redis+sentinel://`, `redis+cluster://`, or "
        "`rediss…` for TLS; `enabled` must then be false",
        "",
    )
    url_secret: str = _value("a Secret whose `url` holds that URL, with a password in it", "")
    image: RedisImage = _value("its image, of Valkey or Redis", RedisImage)
    resources: FreeForm = _value("its resources", _resources("50m", "64Mi", "384Mi"))
    max_memory_megabytes: Annotated[int, Field(ge=16, le=1_000_000)] = _value(
        "memory for data; then the oldest goes", 256
    )
    node_selector: FreeForm = _value("labels of the nodes that may run it", {})
    tolerations: list[FreeForm] = _value("taints of nodes that it bears", [])


class Rbac(ValuesPart):
    aggregate: bool = _value("add rights on models to the cluster's own roles `view`, `edit` and `admin`", True)


class NetworkPolicies(ValuesPart):
    enabled: bool = _value("make NetworkPolicies for the control plane's pods", True)
    metrics_from: list[FreeForm] = _value("who may scrape, as NetworkPolicy peers, besides pods of this namespace", [])


class ServiceMonitors(ValuesPart):
    enabled: bool = _value("make ServiceMonitors, where the cluster knows them", False)
    labels: FreeForm = _value("labels by which your Prometheus finds them", {})
    interval: Duration = _value("how often to scrape", "15s")


class Alerts(ValuesPart):
    enabled: bool = _value("make a PrometheusRule, where the cluster knows them", False)
    labels: FreeForm = _value("labels by which your Prometheus finds it", {})
    alert_labels: FreeForm = _value("labels that every alert gets besides, such as a team's", {})
    without: Names = _value("names of alerts that are left out", [])
    runbooks: str = _value(
        "where this release's runbooks are shown; each alert points to its heading", "docs/runbooks.md"
    )


class Dashboards(ValuesPart):
    enabled: bool = _value("make a ConfigMap for each dashboard, which Grafana's sidecar takes", False)
    labels: FreeForm = _value("labels by which the sidecar finds them", {"grafana_dashboard": "1"})
    annotations: FreeForm = _value("their annotations, such as a folder's name", {})


class Ingress(ValuesPart):
    enabled: bool = _value("make an Ingress to the gateway", False)
    class_name: str = _value("its class", "")
    host: str = _value("the host it is for; any when empty", "")
    tls_secret: str = _value("a Secret with a certificate for that host", "")
    annotations: FreeForm = _value("its annotations", {})


class HttpRoute(ValuesPart):
    enabled: bool = _value("make an HTTPRoute to the gateway, where the cluster knows them", False)
    parent_refs: list[FreeForm] = _value("the Gateways it is attached to", [])
    hostnames: Names = _value("the hosts it is for; any when empty", [])


class Test(ValuesPart):
    model: str = _value("a model that `helm test` asks for a completion; else it only lists them", "")


class Values(ValuesPart):
    """All values in the order of output."""

    global_: Global = Field(default_factory=Global, alias="global", description="shared with other charts")
    fullname_override: str = _value("the beginning of all names instead of the release's", "")
    watch_namespaces: Names = _value(
        "the only namespaces whose models are served; they must exist. Operator, gateway, indexer and autoscaler get a Role in "
        "each instead of rights in all",
        [],
    )
    operator: Operator = _value("the operator", Operator)
    engines: Engines = _value("what all engines are given", Engines)
    gateway: Gateway = _value("the gateway", Gateway)
    indexer: Indexer = _value("who reads what engines have cached", Indexer)
    autoscaler: Autoscaler = _value("who sets the numbers of instances", Autoscaler)
    auth: Auth = _value("who may call", Auth)
    redis: Redis = _value("what gateways share", Redis)
    rbac: Rbac = _value("rights of people", Rbac)
    network_policies: NetworkPolicies = _value("NetworkPolicies", NetworkPolicies)
    service_monitors: ServiceMonitors = _value("for the Prometheus operator", ServiceMonitors)
    alerts: Alerts = _value("alert rules for the Prometheus operator", Alerts)
    dashboards: Dashboards = _value("Grafana dashboards", Dashboards)
    ingress: Ingress = _value("an Ingress", Ingress)
    http_route: HttpRoute = _value("a route of the Gateway API", HttpRoute)
    test: Test = _value("`helm test`", Test)
