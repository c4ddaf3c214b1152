"""The measured targets, each configured to serve one port in front of the mock engines.

Departures from the defaults, all in the peers' favour:

- Routers write no log line per request.
- Connections are not closed after a thousand requests.
- Limits on requests in flight are above the open requests of the benchmark.
- Bodies stay in memory.
"""

import hashlib
import hmac
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

KEY = "bench-key"
_PEPPER = "bench-pepper"
_MODEL = "bench-model"


@dataclass(frozen=True, slots=True)
class TargetLocation:
    """The place of a target: its port, a second port for its own metrics, the engines, a folder for
    its files."""

    port: int
    side_port: int
    engines: tuple[int, ...]
    folder: Path
    program: Path

    @property
    def urls(self) -> list[str]:
        """The engines as URLs."""
        return [f"http://127.0.0.1:{port}" for port in self.engines]


@dataclass(frozen=True, slots=True)
class Target:
    """A measured target. ``peer`` must be installed for it (None: nothing). ``near`` ones are
    compared by a goal and so measured most."""

    name: str
    peer: str | None
    command: Callable[[TargetLocation], list[str]]
    near: bool = False
    asked_for: bool = False  # only when named: slow
    colour: str = "#9aa5b1"


def gateway_options(help_text: str) -> list[str]:
    """Returns the options of a full comparison that this gateway has: API keys, one worker."""
    return [option for option in ("--keys", "--workers") if option in help_text]


def gateway_environment() -> dict[str, str]:
    """Returns the environment that the gateway needs to check keys."""
    return {"FAIRLEAD_KEY_PEPPER": _PEPPER}


def gateway_help() -> str:
    """Returns the gateway's help text."""
    command = [sys.executable, "-m", "fairlead_gateway", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def fairlead_command(place: TargetLocation, workers: int = 1) -> list[str]:
    """Returns the gateway's command, and writes its fleet file and its keys, if it checks any."""
    fleet = place.folder / "fleet.yaml"
    instances = "".join(f'      - {{url: "{url}", engine: vllm}}\n' for url in place.urls)
    fleet.write_text(f"models:\n  - name: {_MODEL}\n    instances:\n{instances}", encoding="utf-8")
    command = [sys.executable, "-m", "fairlead_gateway", "--fleet", str(fleet), "--listen", f"127.0.0.1:{place.port}"]
    options = gateway_options(gateway_help())
    if "--keys" in options:
        digest = hmac.new(_PEPPER.encode(), KEY.encode(), hashlib.sha256).hexdigest()
        keys = place.folder / "keys.yaml"
        keys.write_text(f'keys:\n  - {{name: bench, digest: "{digest}"}}\n', encoding="utf-8")
        command += ["--keys", str(keys)]
    if "--workers" in options:
        command += ["--workers", str(workers)]
    return command


def _router(place: TargetLocation, policy: str, *more: str) -> list[str]:
    """Returns the options that the three Rust routers share."""
    return [
        str(place.program),
        *more,
        "--worker-urls",
        *place.urls,
        *("--policy", policy),
        *("--host", "127.0.0.1"),
        *("--port", str(place.port)),
        *("--prometheus-port", str(place.side_port)),
    ]


def _sglang(policy: str, *more: str) -> Callable[[TargetLocation], list[str]]:
    return lambda place: [*_router(place, policy, "launch"), *more]


def _smg(place: TargetLocation) -> list[str]:
    return [*_router(place, "cache_aware", "launch"), "--log-level", "warn", "--max-concurrent-requests", "8192"]


def _vllm_router(place: TargetLocation) -> list[str]:
    return [*_router(place, "cache_aware"), "--log-level", "warning"]


def _litellm(place: TargetLocation) -> list[str]:
    entry = '  - {{model_name: {0}, litellm_params: {{model: openai/{0}, api_base: "{1}/v1", api_key: none}}}}\n'
    config = place.folder / "litellm.yaml"
    # Without a key of its own it refuses to start. Here it listens on loopback and checks no key.
    text = "general_settings: {dangerously_permit_weak_or_unset_master_key: true}\nmodel_list:\n"
    config.write_text(text + "".join(entry.format(_MODEL, url) for url in place.urls), encoding="utf-8")
    return [str(place.program), "--config", str(config), "--host", "127.0.0.1", "--port", str(place.port)]


def _nginx(place: TargetLocation) -> list[str]:
    servers = "".join(f"    server 127.0.0.1:{port};\n" for port in place.engines)
    scratch = "".join(
        f"  {name}_temp_path {place.folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = place.folder / "nginx.conf"
    config.write_text(
        f"""daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {place.folder}/nginx.pid;
error_log {place.folder}/error.log warn;
events {{ worker_connections 16384; }}
http {{
  access_log off;
{scratch}  client_max_body_size 16m;
  client_body_buffer_size 512k;
  keepalive_requests 100000000;
  upstream engines {{
{servers}    keepalive 1024;
    keepalive_requests 100000000;
  }}
  server {{
    listen 127.0.0.1:{place.port} backlog=4096;
    location / {{
      proxy_pass http://engines;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 1h;
    }}
  }}
}}
""",
        encoding="utf-8",
    )
    return [str(place.program), "-p", str(place.folder), "-c", str(config)]


_ENVOY = """static_resources:
  listeners:
  - name: clients
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: clients
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{match: {{prefix: /}}, route: {{cluster: engines, timeout: 0s}}}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: engines
    type: STATIC
    connect_timeout: 5s
    lb_policy: LEAST_REQUEST
    circuit_breakers:
      thresholds: [{{max_connections: 65536, max_pending_requests: 65536, max_requests: 65536}}]
    load_assignment:
      cluster_name: engines
      endpoints:
      - lb_endpoints:
{endpoints}"""


def _envoy(place: TargetLocation) -> list[str]:
    address = "{{socket_address: {{address: 127.0.0.1, port_value: {}}}}}"
    endpoints = "".join(f"        - endpoint: {{address: {address.format(port)}}}\n" for port in place.engines)
    config = place.folder / "envoy.yaml"
    config.write_text(_ENVOY.format(port=place.port, endpoints=endpoints), encoding="utf-8")
    return [
        str(place.program),
        *("-c", str(config), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"),
    ]


FAIRLEAD, SGLANG, ENVOY, DIRECT = "fairlead", "sglang-router cache_aware", "Envoy", "direct"

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(FAIRLEAD, None, fairlead_command, near=True, colour="#0b6e6e"),
        Target(SGLANG, "sglang-router", _sglang("cache_aware", "--log-level", "warn"), near=True, colour="#c2703d"),
        Target(ENVOY, "envoy", _envoy, near=True, colour="#5b5fc7"),
        Target("nginx", "nginx", _nginx, colour="#4b8b3b"),
        Target("sglang-router round_robin", "sglang-router", _sglang("round_robin", "--log-level", "warn")),
        Target("sglang-router cache_aware, its own log level", "sglang-router", _sglang("cache_aware")),
        Target("smg cache_aware", "smg", _smg),
        Target("vllm-router cache_aware", "vllm-router", _vllm_router),
        Target("litellm", "litellm", _litellm, asked_for=True),
    )
}
