"""Settings: what each process reads from its environment, as one typed value per process.

The environment variable of a field is `FAIRLEAD_` plus the name in capitals. Each field states its
meaning. `reloadable` fields may change while the process runs; `secret` ones are never shown.
docs/reference/settings.md is generated from this module. Options of a single start, such as ports
and files, are command-line flags instead.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

from fairlead.errors import BadInput, SettingsError
from fairlead.names import closest_matches
from fairlead.units import parse_duration, parse_size

VARIABLE_PREFIX = "FAIRLEAD_"
TOOL_VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "FAIRLEAD_CACHE": "where `make` keeps the dependencies, instead of `~/.cache/fairlead`",
        "FAIRLEAD_DEBIAN_MIRRORS": "Debian mirrors from which images are built, instead of those of apt",
        "FAIRLEAD_PYTHON": "the interpreter of the kubectl plugin, instead of `python3`",
        "FAIRLEAD_EXAMPLES": "how many examples each property test draws; `make nightly` sets 5000",
        "FAIRLEAD_NIGHTLY": "`1`: simulations and searches of the tests run in full; `make nightly` sets it",
        "FAIRLEAD_TEST_BUDGET": "`1`: a run of the tests fails that uses too much processor time; `.ci/run` sets it",
        "FAIRLEAD_TEST_FORKS": "`0`: tests start each program in a new interpreter, not as a fork of one that has loaded it",
        "FAIRLEAD_TEST_LOOPS": "`real`: tests in simulated time run on real sockets and clocks; `make nightly` sets it",
        "FAIRLEAD_TEST_ORDER": "a seed: the tests run in this random order; `make nightly` sets it",
        "FAIRLEAD_E2E": "`full`: the tests on a cluster run under 20 streams a second; `make e2e LOAD=1` sets it",
        "FAIRLEAD_E2E_PROVIDER": "`kind`: the tests on a cluster run on kind; `make e2e PROVIDER=kind` sets it",
        "FAIRLEAD_SOAK": "`full`: the soak does everything as often as the bar says; `make soak` sets it",
        "FAIRLEAD_SOAK_KILLS": "how many engines the soak kills",
        "FAIRLEAD_SOAK_MALFORMED": "how many malformed requests the soak sends",
        "FAIRLEAD_SOAK_MINUTES": "how many minutes the kills under sampled streams take",
        "FAIRLEAD_SOAK_PAIRS": "how many pairs of equal idempotency keys the soak sends",
        "FAIRLEAD_SOAK_REQUESTS": "how many requests the soak counts memory over",
        "FAIRLEAD_SOAK_RESTARTS": "how many gateways the soak restarts",
        "FAIRLEAD_SOAK_STREAMS": "how many streams at once the soak has before gateways that drain",
        "FAIRLEAD_SOAK_SEED": "the soak's seed",
    }
)
"""Variables read by the Makefile and the tests, not by a Fairlead process, with their meanings."""
_AUDIT_LOG: Final = (
    "the stream that gets an audit record of every change and every privileged request, one line of JSON each: `-` (standard "
    "output) or `1` (standard error)"
)
_AUDIT_DIR: Final = "a folder for audit files, which are synced to the disk, rotated, and never written again"
_CLIENT_NAMES: Final = (
    "client names that belong to models whatever their age, as `NAME=NAMESPACE/MODEL,NAME=NAMESPACE/MODEL`; only in a cluster, "
    "the same for gateways, indexers and the operator"
)
_INSTALLATION: Final = (
    "the id that this installation writes to all children of models. Its operator and autoscaler leave models alone whose "
    "children have another id. Without it, no id is written; the chart writes `NAMESPACE.RELEASE`"
)
_ENDPOINT_NAMESPACES: Final = (
    "namespaces of a cluster whose models may name `endpoints`, with commas between them; `*` for all. Without it none: an "
    "endpoint makes gateways and indexers connect to any address that they reach"
)


def _setting(description: str, *, default: str | None = None, secret: bool = False, reloadable: bool = False) -> Any:
    return field(default=default, metadata={"says": description, "secret": secret, "reloadable": reloadable})


def _size_in(name: str, text: str | None) -> int:
    """Returns a size in bytes. Raises SettingsError if it is not one from 1 MiB to 256 MiB."""
    try:
        size = parse_size(text or "")
    except BadInput:
        size = 0
    if not 2**20 <= size <= 256 * 2**20:
        name = variable_name(name)
        raise SettingsError(f"{name} is not a size from 1Mi to 256Mi", field=name, hint="write it like 64Mi")
    return size


def _duration_in(name: str, text: str | None, shortest: str) -> float:
    """Returns a duration in seconds. Raises SettingsError below the shortest and above 24 hours."""
    try:
        seconds = parse_duration(text or "")
    except BadInput:
        seconds = -1.0
    if not parse_duration(shortest) <= seconds <= 86_400.0:
        name = variable_name(name)
        text = f"{name} is not a duration from {shortest} to 24h"
        raise SettingsError(text, field=name, hint="write it like 90s or 10m")
    return seconds


class _ProcessSettings:
    """The settings of a process. For logs, secrets show only whether they are set."""

    __slots__ = ()

    def __repr__(self) -> str:
        parts = []
        for item in fields(cast(Any, self)):
            value = getattr(self, item.name)
            parts.append(f"{item.name}={'***' if value and item.metadata['secret'] else repr(value)}")
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, slots=True, repr=False)
class GatewaySettings(_ProcessSettings):
    """Settings of `fairlead-gateway`."""

    hash_secret: str | None = _setting(
        "keys the hashes of prompt prefixes; gateways that share a fleet need the same one. Without it each start "
        "draws its own",
        secret=True,
    )
    redis_url: str | None = _setting(
        "a Redis that gateways share: `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `redis+cluster://`. Without it each "
        "gateway decides alone",
        secret=True,
    )
    manage_token: str | None = _setting(
        "bearer token of the management API; without it, only loopback is answered", secret=True
    )
    manage_tokens_file: str | None = _setting(
        "a file of management tokens that see the data of some tenants only; its digests are under `FAIRLEAD_KEY_PEPPER`. Edits "
        "apply at once"
    )
    autoscaler_url: str | None = _setting(
        "address of the autoscaler, such as `http://fairlead-autoscaler:8080`. The gateway reports to it at once when a request is "
        "queued because its model has no engine. Without it, the autoscaler sees the request when it next reads the metrics"
    )
    key_pepper: str | None = _setting(
        "the secret under which `--keys` and tenants hold the digests of API keys; without it the gateway does not start with "
        "them",
        secret=True,
    )

    links: str | None = _setting(
        "how the tokens of a prompt are found where engines report their caches: `engine` takes those that come with "
        "the first token of a stream, and calls their `/tokenize` for other prompts, outside the request path and at most 20 times a "
        "second; `off` routes without the index",
        default="engine",
    )
    client_hosts: str | None = _setting(
        "DNS names under which clients reach a gateway without API keys, separated by commas. Addresses, names without a dot, and "
        "names in `.localhost`, `.svc`, `.cluster.local` and `.internal` need no entry"
    )
    cors_origins: str | None = _setting(
        "origins of web pages that may call, separated by commas, such as `https://ui.example.com`; `*`: all; `none`. Without it, "
        "`*` where clients need an API key, else `none`"
    )
    log_level: str | None = _setting(
        "`debug`, `info`, `warning` or `error`; lines go to the standard error stream and never hold a prompt",
        default="info",
    )
    changing_text: str | None = _setting(
        "a regular expression for text that changes with every request, such as a timestamp in a system prompt. The key by which "
        "prompts are routed leaves it out"
    )
    access_log: str | None = _setting(
        "where every request is written down as one line of JSON: a path, `-` (standard output) or `1` (standard error). Without it "
        "there is no access log",
    )
    audit_log: str | None = _setting(_AUDIT_LOG)
    audit_dir: str | None = _setting(_AUDIT_DIR)
    access_log_clients: str | None = _setting("`0` leaves the addresses of clients out of the access log", default="1")
    usage_dir: str | None = _setting(
        "the folder of the usage ledger: what each request used, by tenant, and when replicas existed. Gateways may share it. "
        "Without it, no use is recorded"
    )
    trace_endpoint: str | None = _setting(
        "an OpenTelemetry collector that takes OTLP over HTTP, such as `http://otel-collector:4318`; `/v1/traces` is added. "
        "Without it no span is made, and trace contexts are only passed on",
    )
    trace_sample: str | None = _setting(
        "share of the requests without a trace context that are recorded, 0 to 1; those with one follow its sampled flag",
        default="0",
    )
    trace_headers: str | None = _setting(
        "header fields that the collector wants, as `name=value,name=value`", secret=True
    )
    compiled: str | None = _setting(
        "`0` runs workers from the sources even where a compiled copy of the data plane lies in the cache (`make compile`)"
    )
    client_names: str | None = _setting(_CLIENT_NAMES)
    endpoint_namespaces: str | None = _setting(_ENDPOINT_NAMESPACES)
    endpoint_secrets: str | None = _setting(
        "a folder with the Secrets that `endpoints` of models name, as `NAMESPACE/SECRET/KEY`: the first part is the namespace "
        "of the models that may use it. Only in a cluster",
        default="/etc/fairlead/endpoint-secrets",
    )
    memory_limit: str | None = _setting(
        "memory that one gateway process may use, such as `2GiB`; near it, large bodies are answered 503. Without it "
        "the container's limit counts (cgroup version 2 or 1), for all its processes together; where there is none, nothing "
        "is refused"
    )
    drain_timeout: str | None = _setting(
        "how long requests in flight may run on after SIGTERM, `0s` to `24h`. Then streams end with an error event, and other "
        "requests with 503. Give the process 20 s more before it is killed",
        default="10m",
    )
    body_size: str | None = _setting(
        "the most bytes of a request, `1Mi` to `256Mi`, such as pictures need; more is answered 413. One caller may have twice as "
        "much waiting, and at least 64 MiB",
        default="32Mi",
    )
    client_idle_timeout: str | None = _setting(
        "how long a client connection may be idle until it is closed, `1s` to `24h`. It must be longer than the load balancer in "
        "front keeps idle connections: Google's 10 minutes, AWS and nginx 1, Cloudflare 15",
        default="620s",
    )
    stream_head_timeout: str | None = _setting(
        "how long a streamed request waits for its first event until it gets its head and comments, `1s` to `24h`. Shorter than "
        "what is in front waits for a first byte, mostly 60 s. Until then errors have their own status, and SDKs retry",
        default="10s",
    )
    stream_comment_interval: str | None = _setting(
        "the time between two comments in a silent stream, `1s` to `24h`. Shorter than what is in front lets a response be silent",
        default="15s",
    )
    stream_silence_timeout: str | None = _setting(
        "how long a stream may be silent whose engine lives, `1s` to `24h`; then it ends with an error event. SDKs wait 10 minutes",
        default="10m",
    )

    def limits(self) -> dict[str, Any]:
        """Returns the limits that settings replace, in seconds and bytes. Raises SettingsError."""
        body_bytes = _size_in("body_size", self.body_size)
        return {
            "body_bytes": body_bytes,
            "caller_large_bodies_bytes": max(64 * 2**20, 2 * body_bytes),
            "drain_seconds": _duration_in("drain_timeout", self.drain_timeout, "0s"),
            "keepalive_idle_seconds": _duration_in("client_idle_timeout", self.client_idle_timeout, "1s"),
            "stream_head_seconds": _duration_in("stream_head_timeout", self.stream_head_timeout, "1s"),
            "keep_alive_seconds": _duration_in("stream_comment_interval", self.stream_comment_interval, "1s"),
            "stream_silence_seconds": _duration_in("stream_silence_timeout", self.stream_silence_timeout, "1s"),
        }


@dataclass(frozen=True, slots=True, repr=False)
class OperatorSettings(_ProcessSettings):
    """Settings of `fairlead-operator`."""

    watch_namespaces: str | None = _setting(
        "the namespaces whose models are served, with commas between them. Without it, all of them"
    )
    client_names: str | None = _setting(_CLIENT_NAMES)
    endpoint_namespaces: str | None = _setting(_ENDPOINT_NAMESPACES)
    installation: str | None = _setting(_INSTALLATION)
    reconcilers: str | None = _setting("models that are worked on at once", default="8")
    engine_images: str | None = _setting(
        "images for models that name none, as `vllm=IMAGE,sglang=IMAGE,sim=IMAGE`; a kind without one needs `engine.image`"
    )
    downloader_image: str | None = _setting(
        "image of the containers that download adapters, which has the program `fairlead_downloader`: that of the operator. Without "
        "it, models with `adapters.download` are refused"
    )
    engine_pull_secrets: str | None = _setting(
        "names of pull secrets that every engine's pod gets, with commas between them"
    )
    gateway_pods: str | None = _setting(
        "pods that may speak with engines, as `NAMESPACE/LABEL=VALUE,LABEL=VALUE`, several with `;` between them. Without it no "
        "NetworkPolicy is made"
    )
    resync: str | None = _setting(
        "how often all models are listed besides being watched, so that nothing is missed for longer", default="60s"
    )
    lease: str | None = _setting("how long the leader may be silent before another replica takes over", default="15s")
    capacity_grace: str | None = _setting(
        "how long pods may wait for a node before their model is `Stalled` by `InsufficientCapacity`: what a cluster's "
        "autoscaler takes to bring one; `0s` for clusters without",
        default="10m",
    )
    management_pods: str | None = _setting(
        "the gateways whose management ports say which engines hang, as `NAMESPACE/LABEL=VALUE,LABEL=VALUE`; the port is the "
        "container port `manage`. Without it no engine counts as hung"
    )
    manage_token: str | None = _setting("bearer token of the gateways' management ports", secret=True)
    hung_grace: str | None = _setting(
        "how long gateways get no answer of an engine that they have ejected before it hangs; its pod then gets the condition "
        "`fairlead.io/Serving`",
        default="1m",
    )
    hung_restart: str | None = _setting(
        "how long a pod has that condition before it is deleted. Without it no pod is deleted"
    )
    audit_log: str | None = _setting(_AUDIT_LOG)
    audit_dir: str | None = _setting(_AUDIT_DIR)
    log_level: str | None = _setting(
        "`debug`, `info`, `warning` or `error`; lines go to the standard error stream", default="info"
    )


@dataclass(frozen=True, slots=True, repr=False)
class AutoscalerSettings(_ProcessSettings):
    """Settings of `fairlead-autoscaler`."""

    manage_token: str | None = _setting(
        "bearer token for everything but probes and metrics, and for the gateways' hints; the same as theirs. Without it, no token "
        "is required",
        secret=True,
    )
    installation: str | None = _setting(_INSTALLATION)
    scaling_freeze: str | None = _setting(
        "`1` stops every change of replica counts; decisions are still reported", default="0"
    )
    audit_log: str | None = _setting(_AUDIT_LOG)
    audit_dir: str | None = _setting(_AUDIT_DIR)
    log_level: str | None = _setting(
        "`debug`, `info`, `warning` or `error`; lines go to the standard error stream", default="info"
    )


@dataclass(frozen=True, slots=True, repr=False)
class IndexerSettings(_ProcessSettings):
    """Settings of `fairlead-indexer`."""

    hash_secret: str | None = _setting(
        "keys the hashes of token blocks; the gateways' own. Without it they are not keyed, and who may read Redis can test "
        "whether a prompt is cached",
        secret=True,
    )
    redis_url: str | None = _setting("the Redis of the gateways, where the index is written; as theirs", secret=True)
    client_names: str | None = _setting(_CLIENT_NAMES)
    endpoint_namespaces: str | None = _setting(_ENDPOINT_NAMESPACES)
    log_level: str | None = _setting(
        "`debug`, `info`, `warning` or `error`; lines go to the standard error stream and never hold a token",
        default="info",
    )
    compiled: str | None = _setting(
        "`0` runs the sources even where a compiled copy of the data plane lies in the cache (`make compile`)"
    )


@dataclass(frozen=True, slots=True, repr=False)
class CliSettings(_ProcessSettings):
    """Settings of `fairlead`."""

    hash_secret: str | None = _setting(
        "the same for the gateway that `fairlead up` starts; `fairlead replay` simulates the homes of a gateway that has it, "
        "`fairlead index match` looks for the blocks of an indexer that has it",
        secret=True,
    )
    redis_url: str | None = _setting("the Redis that `fairlead index` looks into, as gateways have it", secret=True)
    api_key: str | None = _setting(
        "API key that `fairlead chat` and `fairlead replay` send to the gateway", secret=True
    )
    manage_token: str | None = _setting("bearer token for the gateway's management API", secret=True)
    key_pepper: str | None = _setting(
        "the secret under which `fairlead keys` makes digests, as gateways have it; in a cluster it is read from them",
        secret=True,
    )


@dataclass(frozen=True, slots=True)
class SettingRow:
    """A row of docs/reference/settings.md: one variable of one process."""

    variable: str
    process: str
    description: str
    default: str | None
    secret: bool
    reloadable: bool


def settings_types() -> dict[str, type]:
    """Returns the settings type of each process."""
    return {
        "fairlead-gateway": GatewaySettings,
        "fairlead-operator": OperatorSettings,
        "fairlead-autoscaler": AutoscalerSettings,
        "fairlead-indexer": IndexerSettings,
        "fairlead": CliSettings,
    }


def settings_table() -> list[SettingRow]:
    return [_row(process, item) for process, settings in settings_types().items() for item in fields(settings)]


def _row(process: str, item: "Field[Any]") -> SettingRow:
    default = None if item.default is MISSING else item.default
    meta = item.metadata
    return SettingRow(variable_name(item.name), process, meta["says"], default, meta["secret"], meta["reloadable"])


def variable_name(name: str) -> str:
    return VARIABLE_PREFIX + name.upper()


_Settings = TypeVar("_Settings")


def read_settings(settings_type: type[_Settings], environ: Mapping[str, str]) -> _Settings:
    """Returns the settings of one process. An empty variable counts as unset.

    Raises SettingsError for control characters and undecodable bytes.
    """
    values: dict[str, str] = {}
    for item in fields(cast(Any, settings_type)):
        text = environ.get(variable_name(item.name), "")
        if any(0xDC80 <= ord(char) <= 0xDCFF or ord(char) < 0x20 for char in text):
            message = f"{variable_name(item.name)} holds a control character or bytes that are not UTF-8"
            raise SettingsError(message, field=variable_name(item.name), hint="set it to plain text")
        if text:
            values[item.name] = text
    return settings_type(**values)


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Returns one line for each `FAIRLEAD_` variable that nothing reads, with the closest known
    name.
    """
    known = {row.variable for row in settings_table()}.union(TOOL_VARIABLES)
    lines = []
    for name in sorted(environ):
        if name.startswith(VARIABLE_PREFIX) and name not in known:
            close = closest_matches(name, known, count=1)
            lines.append(f"{name} is not a setting" + (f"; did you mean {close[0]}?" if close else ""))
    return lines
