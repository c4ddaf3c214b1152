"""The chart's values as types; values.yaml, values.schema.json and the README's table are generated
from them.

A value is added together with the template that honours it. In YAML its name is in camel case.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from fairlead.distribution import ADDRESSES

_NAME = "[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
Names = list[Annotated[str, Field(min_length=1, max_length=253, pattern=f"^{_NAME}$")]]
Name = Annotated[str, Field(max_length=253, pattern=f"^({_NAME})?$")]
"""The name of an object, or an empty text.

Why a pattern: a template may write it without quotes. A text of several lines would be other
objects.
"""
AlertNames = list[Annotated[str, Field(min_length=1, max_length=253, pattern="^[A-Za-z][A-Za-z0-9_]*$")]]
ImageName = Annotated[str, Field(max_length=512, pattern="^([A-Za-z0-9][-A-Za-z0-9._:/@+]*)?$")]
"""A part of the name of an image, or an empty text."""
Count = Annotated[int, Field(ge=1, le=1000)]
Seconds = Annotated[int, Field(ge=1, le=3600)]
Port = Annotated[int, Field(ge=1, le=65535)]
Duration = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)$")]
WebAddress = Annotated[str, Field(max_length=2048, pattern=r"^(https?://\S+)?$")]
LogLevel = Annotated[str, Field(pattern="^(debug|info|warning|error)$")]
_NAMESPACE = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_NAMESPACE_OR_ALL = r"^(\*|[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)$"
FreeForm = dict[str, Any]
"""A part of a Kubernetes object that is passed on unchanged."""
Texts = dict[str, str | int | float | bool]
"""Labels or annotations. The templates write numbers and booleans as texts."""


class ValuesPart(BaseModel):
    """A section of the values; helm refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)


def _value(description: str, default: Any) -> Any:
    if isinstance(default, type):
        return Field(default_factory=default, description=description)
    return Field(default=default, description=description)


class Toleration(BaseModel):
    """A toleration. Only `value` has a type, because YAML reads an unquoted true as no text."""

    model_config = ConfigDict(extra="allow", alias_generator=to_camel)
    value: str = _value("value of the taint", "")


class Global(BaseModel):
    """Values shared with parent charts, which may have further fields."""

    model_config = ConfigDict(extra="allow", alias_generator=to_camel)
    image_registry: ImageName = _value(
        "registry of all Fairlead images, for sites that mirror them; when empty, each image has its own", ""
    )
    image_pull_secrets: Names = _value("names of the pull secrets for pods of the control plane", [])
    pod_labels: Texts = _value(
        "labels of every pod of the chart, such as a cost centre; engines have those of models", {}
    )


class Image(ValuesPart):
    registry: ImageName = _value(
        "registry of the image; when empty, that of the release; `global.imageRegistry` replaces it", ""
    )
    tag: ImageName = _value("tag of the image; when empty, the image of the release", "")
    digest: ImageName = _value("digest of the image, such as `sha256:…`; replaces the tag", "")
    pull_policy: Annotated[str, Field(pattern="^(Always|IfNotPresent|Never)$")] = _value(
        "pull policy of the image", "IfNotPresent"
    )


class OperatorImage(Image):
    repository: ImageName = _value("name of the image in its registry", "operator")


class GatewayImage(Image):
    repository: ImageName = _value("name of the image in its registry", "gateway")


class IndexerImage(Image):
    repository: ImageName = _value("name of the image in its registry", "kvstore")


class AutoscalerImage(Image):
    repository: ImageName = _value("name of the image in its registry", "autoscaler")


class RedisImage(Image):
    repository: ImageName = _value("name of the image in its registry", "valkey")


class Placement(ValuesPart):
    """Node placement and priority of a component's pods."""

    node_selector: Texts = _value("node labels that its pods require", {})
    tolerations: list[Toleration] = _value("tolerations of its pods", [])
    affinity: FreeForm = _value("affinity of its pods", {})
    priority_class_name: Name = _value("priority class of its pods", "")
    pod_annotations: Texts = _value("annotations of its pods", {})


def _resources(cpu: str, memory: str, limit: str) -> dict[str, Any]:
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": limit}}


class HungEngines(ValuesPart):
    """Engines that take connections and answer no request, as gateways report them."""

    enabled: bool = _value(
        "read from gateways which engines hang, and mark their pods with the condition `fairlead.io/Serving`; "
        "needed by canaries, too",
        True,
    )
    restart: bool = _value("delete marked pods, so that their workload replaces them", True)
    after: Duration = _value("time without an answer, since gateways ejected an engine, until it counts as hung", "1m")
    restart_after: Duration = _value("time that a pod is marked before it is deleted", "1m")


class Operator(Placement):
    replicas: Count = _value("number of replicas; one of them leads", 2)
    image: OperatorImage = _value("image", OperatorImage)
    resources: FreeForm = _value("resources of its container", _resources("50m", "128Mi", "512Mi"))
    reconcilers: Annotated[int, Field(ge=1, le=256)] = _value("models that are reconciled at the same time", 8)
    resync: Duration = _value("interval of a full list of all models, in addition to the watches", "60s")
    lease: Duration = _value("time without a sign of the leader after which another replica takes over", "15s")
    capacity_grace: Duration = _value("time that pods may wait for a node before their model is `Stalled`", "10m")
    hung_engines: HungEngines = _value("engines that answer no request", HungEngines)
    guard: bool = _value(
        "restrict its writes, by ValidatingAdmissionPolicies, to objects of models of this installation; of pods, to deletion "
        "and the condition `fairlead.io/Serving`",
        True,
    )
    service_accounts: Names = _value(
        "ServiceAccounts that pod templates of models may name, besides those that the operator makes; needs `guard`",
        [],
    )
    log_level: LogLevel = _value("`debug`, `info`, `warning` or `error`", "info")


class EngineImages(ValuesPart):
    vllm: str = _value("image of vLLM engines, for models without an image", "vllm/vllm-openai:v0.32.0")
    sglang: str = _value("image of SGLang engines, for models without an image", "lmsysorg/sglang:v0.5.23")
    sim: str = _value("image of simulated engines; when empty, Fairlead's own of this version", "")


class Engines(ValuesPart):
    images: EngineImages = _value("default images of engines", EngineImages)
    pull_secrets: Names = _value(
        "names of the pull secrets for engine pods; the Secrets are in the namespaces of the models", []
    )
    network_policies: bool = _value(
        "allow connections to engines only from pods of the same model and from this chart's gateways and indexers",
        True,
    )
    pod_guard: bool = _value(
        "allow only controllers of workloads, by a ValidatingAdmissionPolicy, to create pods with the labels by which gateways find "
        "engines",
        True,
    )


class ExternalEngines(ValuesPart):
    namespaces: Annotated[
        list[str], Field(json_schema_extra={"items": {"type": "string", "pattern": _NAMESPACE_OR_ALL}})
    ] = _value(
        "namespaces whose models may name `endpoints`; `*` for all. Gateways and indexers connect to any endpoint that they reach, "
        "except loopback, link-local and the pods and Services of other models",
        [],
    )
    secrets: Annotated[
        dict[str, Names],
        Field(json_schema_extra={"propertyNames": {"pattern": _NAMESPACE}}),
    ] = _value(
        "Secrets of the installation's namespace with tokens and authorities of endpoints, by the namespace whose models may name "
        "them: `NAMESPACE: [SECRET]`. Who may write models there can send the token to any address",
        {},
    )


class Tls(ValuesPart):
    secret: Name = _value("a Secret of type `kubernetes.io/tls`; when set, the public port is HTTPS", "")


class Service(ValuesPart):
    type: Annotated[str, Field(pattern="^(ClusterIP|NodePort|LoadBalancer)$")] = _value(
        "type of the Service", "ClusterIP"
    )
    port: Port = _value("port of the Service", 80)
    annotations: Texts = _value("annotations of the Service", {})


class Autoscaling(ValuesPart):
    enabled: bool = _value("create a HorizontalPodAutoscaler that sets the number of replicas", False)
    min_replicas: Count = _value("lowest number of replicas", 2)
    max_replicas: Count = _value("highest number of replicas", 10)
    cpu_percent: Annotated[int, Field(ge=1, le=1000)] = _value(
        "target of the CPU use, in percent of the CPU request", 70
    )


class Trace(ValuesPart):
    endpoint: str = _value(
        "an OpenTelemetry collector that accepts OTLP over HTTP; when empty, no spans are recorded", ""
    )
    sample: Annotated[float, Field(ge=0, le=1)] = _value(
        "share of the requests without a trace context that are recorded, 0 to 1", 0
    )


class Fleet(ValuesPart):
    models: list[FreeForm] = _value(
        "models and engines, as in a fleet file, instead of those of the cluster; edits apply without a restart", []
    )
    secrets: Names = _value(
        "Secrets with keys and authorities of these engines. `tokenFile` and `caFile` of a model name them as "
        "`/etc/fairlead/engine-secrets/SECRET/KEY`; new contents apply without a restart",
        [],
    )


class Usage(ValuesPart):
    enabled: bool = _value("record what each request used, by tenant, for `fairlead usage` and `fairlead cost`", True)
    claim: Name = _value(
        "a PersistentVolumeClaim for these records, with the access mode ReadWriteMany for several replicas. When empty, each pod "
        "has them in an emptyDir, and they are lost with the pod",
        "",
    )
    fs_group: Annotated[int, Field(ge=0, le=2**31 - 1)] = _value(
        "group that gets the claim's files, such as 65532, the group of the images; needed where volumes belong to root. 0: none",
        0,
    )


class Gateway(Placement):
    replicas: Count = _value("number of replicas; without effect when `autoscaling` is enabled", 2)
    workers: Annotated[int, Field(ge=1, le=64)] = _value("worker processes of each replica; one per CPU core", 1)
    image: GatewayImage = _value("image", GatewayImage)
    resources: FreeForm = _value(
        "resources of its container; near the memory limit, large bodies are refused. A million cached blocks "
        "need 80 MB where engines publish KV events",
        _resources("500m", "192Mi", "1Gi"),
    )
    fleet: Fleet = _value("models to serve", Fleet)
    service: Service = _value("Service of the gateway", Service)
    tls: Tls = _value("HTTPS on the public port", Tls)
    autoscaling: Autoscaling = _value("HorizontalPodAutoscaler of the gateway", Autoscaling)
    leave_seconds: Seconds = _value(
        "seconds for which a terminating pod still accepts requests, until no proxy sends it any", 5
    )
    drain_seconds: Annotated[int, Field(ge=0, le=86_400)] = _value(
        "seconds for which requests in flight then run on; streams that last longer end with an error event. "
        "`terminationGracePeriodSeconds` follows from both",
        600,
    )
    body_size: Annotated[str, Field(pattern="^([1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-6])Mi$")] = _value(
        "the most bytes of a request, such as pictures need, `1Mi` to `256Mi`; more is answered 413", "32Mi"
    )
    client_idle_seconds: Annotated[int, Field(ge=1, le=86_400)] = _value(
        "seconds until an idle connection of a client is closed; more than the load balancer in front keeps its own",
        620,
    )
    stream_head_seconds: Annotated[int, Field(ge=1, le=86_400)] = _value(
        "seconds after which a streamed request without a first event gets its head and comments; less than the load balancer waits",
        10,
    )
    stream_comment_seconds: Annotated[int, Field(ge=1, le=86_400)] = _value(
        "seconds between two comments in a silent stream; less than the load balancer lets a response be silent", 15
    )
    stream_silence_seconds: Annotated[int, Field(ge=1, le=86_400)] = _value(
        "seconds for which a stream may be silent while its engine lives", 600
    )
    log_level: LogLevel = _value("`debug`, `info`, `warning` or `error`", "info")
    access_log: bool = _value("write each request to standard output as a line of JSON, without prompts", False)
    access_log_clients: bool = _value("include the addresses of clients in the access log", True)
    client_hosts: list[str] = _value(
        "DNS names under which clients reach gateways without API keys, besides those of the Service, the Ingress and the "
        "HTTPRoute",
        [],
    )
    cors_origins: list[str] = _value(
        "origins of web pages that may call, such as `https://ui.example.com`, `*` or `none`; when empty, all with `auth`, else "
        "none",
        [],
    )
    trace: Trace = _value("traces", Trace)
    usage: Usage = _value("the usage ledger", Usage)


class Indexer(Placement):
    enabled: bool = _value("run the indexer when there is a Redis; without Redis, each gateway indexes by itself", True)
    replicas: Count = _value("number of replicas; one of them reads each model", 2)
    image: IndexerImage = _value("image", IndexerImage)
    resources: FreeForm = _value(
        "resources of its container; a million cached blocks need 80 MB", _resources("100m", "128Mi", "1Gi")
    )
    log_level: LogLevel = _value("`debug`, `info`, `warning` or `error`", "info")


class Autoscaler(Placement):
    enabled: bool = _value("run the autoscaler; it scales only models with `autoscaling.mode: Auto`", True)
    replicas: Count = _value("number of replicas; one of them writes", 2)
    image: AutoscalerImage = _value("image", AutoscalerImage)
    resources: FreeForm = _value("resources of its container", _resources("50m", "128Mi", "512Mi"))
    freeze: bool = _value("change no replica counts; decisions are still reported", False)
    guard: bool = _value(
        "restrict its writes, by a ValidatingAdmissionPolicy, to two annotations of pods, to two conditions of models, "
        "and to replica counts of the operator's workloads",
        True,
    )
    log_level: LogLevel = _value("`debug`, `info`, `warning` or `error`", "info")


class Auth(ValuesPart):
    enabled: bool = _value("require an API key; when false, every client that reaches the gateway is served", True)
    keys_secret: Name = _value(
        "your own Secret with `keys.yaml`, `pepper` and, if keys were revoked, `revoked`; when empty, a first key is created",
        "",
    )
    token_issuers: list[FreeForm] = _value(
        "issuers of bearer tokens (JWT) that identify tenants: issuer, audiences, jwksUrl, and optionally algorithms, caFile, "
        "tokenFile and tokenType of each",
        [],
    )


class Redis(Placement):
    enabled: bool = _value("run a Redis without persistence, for trials", True)
    url: Annotated[str, Field(pattern=r"^$|^(rediss?(\+sentinel|\+cluster)?|unix)://[^@]*$")] = _value(
        "URL of your own Redis without a password: `redis://`, `redis+sentinel://`, `redis+cluster://`, or `rediss…` for TLS; "
        "requires `enabled: false`",
        "",
    )
    url_secret: Name = _value(
        "a Secret whose key `url` has the URL of your own Redis, with its password; requires `enabled: false`", ""
    )
    image: RedisImage = _value("image of Valkey or Redis", RedisImage)
    resources: FreeForm = _value("resources of its container", _resources("50m", "256Mi", "1536Mi"))
    max_memory_megabytes: Annotated[int, Field(ge=16, le=1_000_000)] = _value(
        "memory for data, in MB; beyond it, the oldest data is evicted. An indexer keeps some 8,000 blocks per MB. "
        "The container needs half as much again (`resources`)",
        1024,
    )


class Rbac(ValuesPart):
    aggregate: bool = _value(
        "add rights on models to the roles `view`, `edit` and `admin` of the cluster. By default, bind the chart's ClusterRoles "
        "`…-view` and `…-edit` in the namespaces that may write models",
        False,
    )


class NetworkPolicies(ValuesPart):
    enabled: bool = _value("create NetworkPolicies for pods of the control plane", True)
    metrics_from: list[FreeForm] = _value(
        "NetworkPolicy peers that may read metrics, in addition to pods of this namespace", []
    )


class ServiceMonitors(ValuesPart):
    enabled: bool = _value("create ServiceMonitors, if the cluster has this kind", False)
    labels: Texts = _value("labels that your Prometheus selects", {})
    interval: Duration = _value("scrape interval", "15s")
    tenants: bool = _value(
        "scrape the series of tenants too: the gateway's ServiceMonitor names the management token in its Secret", True
    )


class Alerts(ValuesPart):
    enabled: bool = _value("create a PrometheusRule, if the cluster has this kind", False)
    labels: Texts = _value("labels that your Prometheus selects", {})
    alert_labels: Texts = _value("labels to add to every alert, such as the team", {})
    without: AlertNames = _value("names of alerts to leave out", [])
    runbooks: WebAddress = _value(
        "address of the page of alerts, for `runbook_url`; when empty, alerts have only the text of their runbook, as "
        "the annotation `runbook`",
        ADDRESSES.documentation_page("troubleshooting/alerts.html") if ADDRESSES.site else "",
    )


class Dashboards(ValuesPart):
    enabled: bool = _value("create a ConfigMap per dashboard, for the sidecar of Grafana", False)
    labels: Texts = _value("labels that the sidecar selects", {"grafana_dashboard": "1"})
    annotations: Texts = _value("annotations of the ConfigMaps, such as a folder name", {})


class Ingress(ValuesPart):
    enabled: bool = _value("create an Ingress to the gateway", False)
    class_name: Name = _value("ingress class", "")
    host: str = _value("host name; when empty, any", "")
    tls_secret: Name = _value("a Secret with a certificate for the host", "")
    annotations: Texts = _value("annotations of the Ingress", {})


class HttpRoute(ValuesPart):
    enabled: bool = _value("create an HTTPRoute to the gateway, if the cluster has this kind", False)
    parent_refs: list[FreeForm] = _value("Gateways to attach the route to", [])
    hostnames: list[Annotated[str, Field(min_length=1, max_length=253)]] = _value("host names; when empty, any", [])


class Test(ValuesPart):
    resources: FreeForm = _value(
        "resources of its container; quotas on limits ask for both",
        {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}},
    )
    model: str = _value(
        "model that `helm test` requests a completion from; when empty, it only lists the models. With `gateway.tls` it only asks "
        "whether the gateway is ready",
        "",
    )


class Audit(ValuesPart):
    stdout: bool = _value(
        "write audit records of gateways, operator and autoscaler to the standard output, as lines of JSON", True
    )
    manage_tokens: Name = _value(
        "a Secret whose key `tokens.yaml` lists management tokens that see some tenants only; needs `auth.enabled`", ""
    )


class Values(ValuesPart):
    """All values in the order of output."""

    enabled: Literal[True] = _value(
        "for `condition: fairlead.enabled` of a parent chart, which renders nothing of this chart when it is false",
        True,
    )
    global_: Global = Field(default_factory=Global, alias="global", description="values shared with other charts")
    fullname_override: Annotated[str, Field(pattern="^([a-z0-9][-a-z0-9]*)?$")] = _value(
        "prefix of all names, instead of the release name", ""
    )
    watch_namespaces: Names = _value(
        "namespaces whose models are served; when empty, all. They must exist: the components get a Role in each, and no rights in "
        "others",
        [],
    )
    installation: Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$")] = _value(
        "id of this installation, which children of models carry; when empty, `NAMESPACE.NAME` of the release. "
        "Two operators or autoscalers never manage one model: set the id of another installation to take over its models",
        "",
    )
    client_names: dict[str, str] = _value(
        "client names that belong to models whatever their age: `NAME: NAMESPACE/MODEL`. Without it, the first owner keeps a name, "
        "also when it is deleted",
        {},
    )
    operator: Operator = _value("the operator", Operator)
    engines: Engines = _value("settings of all engines", Engines)
    external_engines: ExternalEngines = _value("engines that Fairlead does not run", ExternalEngines)
    gateway: Gateway = _value("the gateway", Gateway)
    indexer: Indexer = _value("the indexer, which reads the caches of engines", Indexer)
    autoscaler: Autoscaler = _value("the autoscaler, which sets replica counts", Autoscaler)
    auth: Auth = _value("authentication of clients", Auth)
    audit: Audit = _value("audit records, and who may read data of tenants", Audit)
    redis: Redis = _value("the Redis that gateways share", Redis)
    rbac: Rbac = _value("rights of users", Rbac)
    network_policies: NetworkPolicies = _value("NetworkPolicies", NetworkPolicies)
    service_monitors: ServiceMonitors = _value("ServiceMonitors for the Prometheus operator", ServiceMonitors)
    alerts: Alerts = _value("alert rules for the Prometheus operator", Alerts)
    dashboards: Dashboards = _value("Grafana dashboards", Dashboards)
    ingress: Ingress = _value("Ingress to the gateway", Ingress)
    http_route: HttpRoute = _value("HTTPRoute of the Gateway API", HttpRoute)
    test: Test = _value("settings of `helm test`", Test)
