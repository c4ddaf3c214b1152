"""The verbs that talk to gateways, autoscalers and Redis of a cluster, on a real API server.

A kubelet of the tests ends the forwarded connections; the rights are those of the API server.
"""

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from fairlead import management_api as api
from fairlead.kube.client import KubeApi
from fairlead.kube.resources import PODS, Manifest, uid_of
from fairlead.runtime.clock import SystemClock
from fairlead_autoscaler.core import ModelSpec, Observation, PoolSpec, ScalingPlan
from fairlead_autoscaler.history.recorder import TickRecord, encode_record
from fairlead_autoscaler.scaling_policy import EnforcedPlan
from fairlead_cli.cluster.access.port_forward import PodPort, PortForwarder
from fairlead_cli.cluster.installation import _service_of, open_installation
from fairlead_cli.exit_codes import ClusterUnreachable
from fairlead_cli.target import ClusterOptions
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer
from fairlead_testing.kube.api_server import ApiServer, api_server_for_test
from fairlead_testing.kube.kubelet import NODE, Kubelet
from fairlead_testing.kube.manifests import simulated_model
from fairlead_testing.kube.operator_process import apply_crds_and_namespaces
from fairlead_testing.redis.valkey import Valkey

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
PLACE, TOKEN, KEY = "fairlead", "manage-secret", "fl_first"
GATEWAYS = ("fairlead-gateway-0", "fairlead-gateway-1")
AUTOSCALERS = ("fairlead-autoscaler-0", "fairlead-autoscaler-1")
NOT_KNOWN = CannedResponse([b'{"error": {"message": "not in the log"}}'], 404)
KINDS = ("Secret", "Service", "Deployment")
MODEL_POD = "tiny-main-58d7-x2kd"
MODEL = simulated_model("tiny", "chat", model={"uri": "hf://Org/tiny"}, pools=[{"acceleratorClassName": "nvidia-l4"}])
SECRETS = {"manage-token": TOKEN, "hash-secret": "drawn", "first-key": KEY, "url": "redis://fairlead-redis:6379/0"}


def decision(request_id: str, wall: float, instance: str = "main-0/1/0", reason: str = "a home") -> api.DecisionOut:
    choice = api.ChoiceOut(instance=instance, rule="affinity", reason=reason)
    return api.DecisionOut(request_id=request_id, model="chat/tiny", wall=wall, prompt_tokens=10.0, choices=[choice])


def answers(content: Any) -> CannedResponse:
    return CannedResponse([content if isinstance(content, bytes) else msgspec.json.encode(content)])


def gateway(request_id: str, wall: float) -> CannedServer:
    """The management API and the client API of one gateway."""
    entry = decision(request_id, wall)
    chunk = b'data: {"choices": [{"delta": {"content": "blue"}}]}\n\ndata: [DONE]\n\n'
    return CannedServer(
        {
            "/api/decisions": answers(api.DecisionsOut(decisions=[entry])),
            **{f"/api/decisions/{name}": NOT_KNOWN for name in ("req-old", "req-new", "req-none")},
            f"/api/decisions/{request_id}": answers(entry),
            "/api/route": answers(api.RoutePreviewOut(decision=entry, workers=1, agreeing=1)),
            "/v1/chat/completions": CannedResponse([chunk], 200, {"content-type": "text/event-stream"}),
            "/v1/models": answers({"data": [{"id": "tiny"}]}),
        }
    )


def autoscaler(*, leads: bool) -> CannedServer:
    model = ModelSpec("chat/tiny", None, None, (PoolSpec("main", minimum=1, maximum=4),))
    plans = {"main": EnforcedPlan(2, 1, "up" if leads else "other", "1.40 are needed")}
    record = TickRecord(0.0, model, Observation(0.0, None, {}), ScalingPlan(), plans)
    return CannedServer(
        {
            "/autoscaling": answers({"leads": leads, "models": {"chat/tiny": record}}),
            "/autoscaling/look": answers(encode_record(record)),
            "/autoscaling/recording": answers(encode_record(record) + b"\n"),
        }
    )


class Stage:
    """An installation on an API server, and the servers behind its pods."""

    def __init__(self, server: ApiServer, kubelet: Kubelet, servers: dict[str, CannedServer]) -> None:
        self.server = server
        self.kubelet = kubelet
        self.servers = servers

    def fairlead(self, *words: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        known = {name: value for name, value in os.environ.items() if not name.startswith("FAIRLEAD_")}
        given = {"KUBECONFIG": str(self.server.kubeconfig), "XDG_RUNTIME_DIR": str(self.server.run)}
        command = [sys.executable, "-m", "fairlead_cli", *words]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=120, env={**known, **given, **environment}
        )


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, builders: Any) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("installed")
    servers = {
        GATEWAYS[0]: gateway("req-old", 100.0),
        GATEWAYS[1]: gateway("req-new", 200.0),
        AUTOSCALERS[0]: autoscaler(leads=False),
        AUTOSCALERS[1]: autoscaler(leads=True),
    }
    with ExitStack() as stack:
        redis = Valkey(folder)
        stack.callback(redis.kill)
        redis.start()
        targets: dict[tuple[str, int], int | Path] = {("fairlead-redis-0", 6379): redis.path}
        for name, canned in servers.items():
            stack.enter_context(canned)
            for port in (8080, 8081):
                targets[name, port] = int(canned.url.rpartition(":")[2])
        server = stack.enter_context(api_server_for_test(folder / "run"))
        kubelet = stack.enter_context(Kubelet(folder, targets))
        asyncio.run(_installed(server, kubelet, builders["chart"](), builders["pod"]))
        yield Stage(server, kubelet, servers)


async def _installed(
    server: ApiServer, kubelet: Kubelet, chart: list[Manifest], pod: Callable[[Manifest, int], Manifest]
) -> None:
    async with KubeApi(server.config(), SystemClock(), lambda: 0.5) as api:
        await api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE}}, "test")
        await kubelet.register(api)
        for manifest in chart:
            if manifest["kind"] == "Secret":
                manifest["data"] = {
                    name: base64.b64encode(SECRETS.get(name, "drawn").encode()).decode() for name in manifest["data"]
                }
            if manifest["kind"] in KINDS:
                await api.apply(manifest, "test")
            if manifest["kind"] == "Deployment":
                for number in range(manifest["spec"]["replicas"]):
                    await _run(api, pod(manifest, number))
        await apply_crds_and_namespaces(api, "chat")
        await api.apply(MODEL, "test")
        container = {"name": "engine", "image": "example.com/engine:1"}
        metadata = {"name": MODEL_POD, "namespace": "chat"}
        await api.apply(
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}, "test"
        )


async def _pod_uid(server: ApiServer, name: str) -> str:
    async with KubeApi(server.config(), SystemClock(), lambda: 0.5) as api:
        return uid_of(await api.get(PODS, "chat", name))


async def _run(api: KubeApi, pod: Manifest) -> None:
    """Creates a ready pod on the node of the kubelet."""
    status = pod.pop("status")
    del pod["metadata"]["uid"]
    await api.apply({**pod, "spec": {**pod["spec"], "nodeName": NODE}}, "test")
    await api.patch_merge(PODS, PLACE, pod["metadata"]["name"], {"status": status}, "test", subresource="status")


def bearer(canned: CannedServer) -> str:
    sent = {name.lower(): value for name, value in canned.requests[-1].headers.items()}
    return sent.get("authorization", "")


def test_explain_request_finds_the_gateway_that_had_it(stage: Stage) -> None:
    done = stage.fairlead("explain", "request", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["request_id"] == "req-new"
    done = stage.fairlead("explain", "request", "req-old", "-o", "yaml")
    assert done.returncode == 0, done.stderr
    assert "request_id: req-old\n" in done.stdout
    assert bearer(stage.servers[GATEWAYS[0]]) == f"Bearer {TOKEN}"
    done = stage.fairlead("explain", "request", "req-none")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no decision for request 'req-none' at gateway fairlead-gateway-0, gateway fairlead-gateway-1" in done.stderr


def test_explain_route_names_the_model_of_the_namespace(stage: Stage) -> None:
    done = stage.fairlead("explain", "route", "tiny", "-n", "chat", "-f", "-", stdin="why?")
    assert done.returncode == 0, done.stderr
    assert "affinity" in done.stdout
    sent = [
        request
        for canned in stage.servers.values()
        for request in canned.requests
        if request.path.startswith("/api/route")
    ]
    assert json.loads(sent[-1].body)["model"] == "chat/tiny"


def test_bare_name_means_the_model_of_the_kubeconfig(stage: Stage, tmp_path: Path) -> None:
    document = json.loads(stage.server.kubeconfig.read_text())
    document["contexts"][0]["context"]["namespace"] = "chat"
    (tmp_path / "chat").write_text(json.dumps(document))
    chat = {"KUBECONFIG": str(tmp_path / "chat")}
    for name, sent in (("tiny", "chat/tiny"), ("other", "other"), ("Org/tiny", "Org/tiny")):
        done = stage.fairlead("chat", "-m", name, "--message", "Why?", **chat)
        assert (done.returncode, done.stdout) == (0, "blue\n"), done.stderr
        assert json.loads(stage.servers[GATEWAYS[0]].requests[-1].body)["model"] == sent
        done = stage.fairlead("explain", "route", name, "-f", "-", stdin="why?", **chat)
        assert done.returncode == 0, done.stderr
        assert json.loads(stage.servers[GATEWAYS[0]].requests[-1].body)["model"] == sent


async def test_decisions_name_pods(stage: Stage) -> None:
    uid = await _pod_uid(stage.server, MODEL_POD)
    reason = f"the longest step of {uid}/8000/0 would take 2 s"
    entry = decision("req-pods", 300.0, f"{uid}/8000/0", reason)
    stage.servers[GATEWAYS[0]].responses["/api/decisions/req-pods"] = answers(entry)
    done = stage.fairlead("explain", "request", "req-pods")
    assert done.returncode == 0, done.stderr
    assert f"attempt 1 → {MODEL_POD} by the rule affinity\n     the longest step of {MODEL_POD}/8000/0" in done.stdout
    done = stage.fairlead("explain", "request", "req-pods", "-o", "json")
    assert json.loads(done.stdout)["choices"][0]["instance"] == f"{uid}/8000/0"


def test_scaling_verbs_query_the_leader(stage: Stage) -> None:
    done = stage.fairlead("explain", "scaling", "tiny", "-n", "chat")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("chat/tiny at ")
    looks = [
        [request.path for request in stage.servers[name].requests if "look" in request.path] for name in AUTOSCALERS
    ]
    assert looks == [[], ["/autoscaling/look?model=chat%2Ftiny"]]
    done = stage.fairlead("replay-scaling", "-n", "chat", "-m", "tiny", "-o", "json")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert stage.servers[AUTOSCALERS[1]].requests[-1].path == "/autoscaling/recording?since=0.0"


def test_chat_sends_the_first_key_of_the_installation(stage: Stage) -> None:
    done = stage.fairlead("chat", "--message", "Why?", "--install-namespace", PLACE)
    assert (done.returncode, done.stdout) == (0, "blue\n"), done.stderr
    assert bearer(stage.servers[GATEWAYS[0]]) == f"Bearer {KEY}"


def test_index_reads_the_redis_of_the_cluster(stage: Stage) -> None:
    done = stage.fairlead("index", "stats", "--context", "fairlead-e2e")
    assert (done.returncode, done.stdout) == (1, "")
    assert "this Redis has no index" in done.stderr
    assert ("fairlead-redis-0", 6379) in stage.kubelet.forwarded


def test_deleted_model_is_told_from_one_that_exists(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(stage.server.kubeconfig))
    with open_installation(ClusterOptions(install_namespace=PLACE)) as installation:
        assert not asyncio.run(installation.is_model_deleted("chat/tiny"))
        assert asyncio.run(installation.is_model_deleted("chat/gone"))


def test_missing_rights_are_named(stage: Stage, tmp_path: Path) -> None:
    document = json.loads(stage.server.kubeconfig.read_text())
    document["users"][0]["user"]["as"] = "jane"
    (tmp_path / "jane").write_text(json.dumps(document))
    jane = {"KUBECONFIG": str(tmp_path / "jane")}
    done = stage.fairlead("explain", "request", **jane)
    assert done.returncode == 2
    assert "you may not list deployments" in done.stderr
    allow(stage.server, "deployments", "pods", "services")
    done = stage.fairlead("explain", "request", **jane)
    assert done.returncode == 2
    assert "the Secret fairlead/fairlead-gateway cannot be read: you may not get secrets in fairlead" in done.stderr
    done = stage.fairlead("explain", "request", FAIRLEAD_MANAGE_TOKEN=TOKEN, **jane)
    assert done.returncode == 2
    assert "you need the verbs get and create on pods/portforward in fairlead" in done.stderr


def allow(server: ApiServer, *resources: str) -> None:
    """Lets jane list these resources in the namespace of the installation."""
    metadata = {"name": "jane", "namespace": PLACE}
    group = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": ["", "apps"], "resources": list(resources), "verbs": ["get", "list"]}]
    role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": rules}
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "jane"},
        "subjects": [{"kind": "User", "name": "jane", "apiGroup": group}],
    }

    async def main() -> None:
        async with KubeApi(server.config(), SystemClock(), lambda: 0.5) as api:
            await api.apply(role, "test")
            await api.apply(binding, "test")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("host", "service"),
    [
        ("fairlead-redis", ("fairlead-redis", "here")),
        ("redis.data", ("redis", "data")),
        ("redis.data.svc.cluster.local", ("redis", "data")),
        ("redis.example.com", (None, "here")),
        ("10.0.0.1", (None, "here")),
        ("", (None, "here")),
    ],
)
def test_service_of_a_host_name(host: str, service: tuple[str | None, str]) -> None:
    assert _service_of(host, "here") == service


def test_large_answers_pass_a_forwarded_port(stage: Stage) -> None:
    body = os.urandom(3_000_000)
    stage.servers[GATEWAYS[0]].responses["/large"] = CannedResponse([body])
    with PortForwarder(stage.server.config()) as forwarder:
        port = forwarder.open(PodPort(PLACE, GATEWAYS[0], 8081))
        for _ in range(2):  # the first connection was opened in advance
            assert httpx.get(f"http://127.0.0.1:{port}/large", trust_env=False).content == body


def test_closing_with_an_open_connection_reports_nothing(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.servers[GATEWAYS[0]].responses["/open"] = CannedResponse([b"here"])
    with httpx.Client(trust_env=False) as client, PortForwarder(stage.server.config()) as forwarder:
        port = forwarder.open(PodPort(PLACE, GATEWAYS[0], 8081))
        assert client.get(f"http://127.0.0.1:{port}/open").content == b"here"
    assert caplog.messages == []


def test_errors_of_a_forwarded_port_are_explained(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    with PortForwarder(stage.server.config()) as forwarder:
        with pytest.raises(ClusterUnreachable, match="port 8081 of pod fairlead/gone: it does not exist"):
            forwarder.open(PodPort(PLACE, "gone", 8081))
        port = forwarder.open(PodPort(PLACE, GATEWAYS[0], 9999))
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)
    assert "nothing listens on port 9999" in capsys.readouterr().err
