"""The parts around the control loop: settings, login, health, leader election, watches."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import FairleadError, SettingsError
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Forbidden, NotLeading
from fairlead.kube.leader_election import LeaderElector, LeaseCandidate, LeaseTiming, candidate_identity
from fairlead.kube.resources import LEASES, MODEL_DEPLOYMENTS, PODS, SERVICE_ACCOUNTS, SERVICES
from fairlead.kube.transport.kubeconfig import ClusterConfig, ClusterConfigError
from fairlead.runtime.clock import Pacing
from fairlead.runtime.tasks import cancel_and_wait
from fairlead.settings import OperatorSettings, read_settings
from fairlead_operator.__main__ import main
from fairlead_operator.health import HealthState, check_liveness, check_readiness, stale_cache_reason
from fairlead_operator.http_server import MetricsCollector, OperatorMetrics, make_application
from fairlead_operator.kube.kopf_watch import TOKEN_REFRESH_SECONDS, connection_info
from fairlead_operator.kube.leader_election import run_while_leading
from fairlead_operator.kube.object_cache import STANDARD_CHILD_KINDS, ObjectCache
from fairlead_operator.kube.watches import ClusterWatcher, is_ipv6_first
from fairlead_operator.manager import Manager
from fairlead_operator.render.context import AllowedPeer, ClusterCapabilities
from fairlead_operator.settings import HungEngineOptions, parse_options
from fairlead_testing.kube.fake_server import FakeApiServer, OrderedResponse, fake_api_server
from fairlead_testing.waiting import FakeTime, wait_until

LABELS = {"app.kubernetes.io/managed-by": "fairlead", "fairlead.io/model": "qwen"}


# --- settings -----------------------------------------------------------------------------------------------------------


def test_settings_have_units_and_defaults() -> None:
    parsed = parse_options(read_settings(OperatorSettings, {}))
    assert (parsed.namespaces, parsed.workers, parsed.resync_seconds, parsed.installation.peers) == ((), 8, 60.0, None)
    assert parsed.lease_timing == LeaseTiming(15.0, 10.0, 2.0)
    given = {
        "FAIRLEAD_WATCH_NAMESPACES": "chat, search",
        "FAIRLEAD_ENGINE_IMAGES": "vllm=r/vllm:1,sim=r:5000/sim:2",
        "FAIRLEAD_ENGINE_PULL_SECRETS": "a,b",
        "FAIRLEAD_GATEWAY_PODS": "fairlead/app=gateway,tier=x; other/app=y",
        "FAIRLEAD_INSTALLATION": "fairlead.main",
    }
    parsed = parse_options(read_settings(OperatorSettings, given))
    assert parsed.namespaces == ("chat", "search")
    assert {str(kind): image for kind, image in parsed.installation.images.items()} == {
        "VLLM": "r/vllm:1",
        "Sim": "r:5000/sim:2",
    }
    assert parsed.installation.pull_secrets == ("a", "b")
    assert parsed.installation.id == "fairlead.main"
    assert parsed.installation.peers is not None
    assert [(peer.namespace, peer.labels) for peer in parsed.installation.peers] == [
        ("fairlead", {"app": "gateway", "tier": "x"}),
        ("other", {"app": "y"}),
    ]


def test_engines_are_restarted_only_with_gateways_and_a_grace() -> None:
    assert parse_options(read_settings(OperatorSettings, {"FAIRLEAD_HUNG_RESTART": "2m"})).hung_engines is None
    given = {"FAIRLEAD_MANAGEMENT_PODS": "fairlead/app=gateway", "FAIRLEAD_MANAGE_TOKEN": "s3cret"}
    options = parse_options(read_settings(OperatorSettings, given)).hung_engines
    assert options == HungEngineOptions(AllowedPeer("fairlead", {"app": "gateway"}), "s3cret", 60.0, None)
    options = parse_options(read_settings(OperatorSettings, given | {"FAIRLEAD_HUNG_RESTART": "2m"})).hung_engines
    assert options is not None
    assert options.restart_seconds == 120.0


def test_a_long_installation_id_fits_into_a_label() -> None:
    first, second = (
        parse_options(read_settings(OperatorSettings, {"FAIRLEAD_INSTALLATION": f"{'n' * 63}.{name}"})).installation.id
        for name in ("one", "two")
    )
    assert max(len(first), len(second)) <= 63
    assert first != second


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WATCH_NAMESPACES", "Chat"),
        ("RECONCILERS", "0"),
        ("RECONCILERS", "many"),
        ("RESYNC", "1s"),
        ("RESYNC", "soon"),
        ("LEASE", "2h"),
        ("HUNG_GRACE", "1s"),
        ("HUNG_RESTART", "never"),
        ("MANAGEMENT_PODS", "gateways"),
        ("MANAGEMENT_PODS", "a/app=x;b/app=y"),
        ("LOG_LEVEL", "loud"),
        ("ENGINE_IMAGES", "vllm"),
        ("ENGINE_IMAGES", "custom=x"),
        ("GATEWAY_PODS", "fairlead"),
        ("GATEWAY_PODS", "fairlead/app"),
        ("GATEWAY_PODS", "/app=x"),
        ("INSTALLATION", "a/b"),
    ],
)
def test_invalid_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"FAIRLEAD_{name}"):
        parse_options(read_settings(OperatorSettings, {f"FAIRLEAD_{name}": value}))


def test_process_that_cannot_start_names_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert main([]) == 2
    assert "no kubeconfig" in capsys.readouterr().err


# --- login --------------------------------------------------------------------------------------------------------------


def test_rotating_token_is_reread_and_renewed_in_time(tmp_path: Path) -> None:
    token = tmp_path / "token"
    access = ClusterConfig(
        server="https://[fd00::1]:443", source="a pod", token_file=token, ca_file=tmp_path / "ca.crt"
    )
    for text in ("one", "two"):
        token.write_text(text + "\n")
        connection = connection_info(access, 1_000.0)
        assert (connection.token, connection.scheme, connection.server) == (text, "Bearer", "https://[fd00::1]:443")
        assert connection.expiration is not None
        assert connection.expiration.timestamp() == 1_000.0 + TOKEN_REFRESH_SECONDS
    token.unlink()
    with pytest.raises(ClusterConfigError, match="cannot read the token"):
        connection_info(access, 0.0)


def test_certificates_are_passed_on_and_kopf_limits_are_named() -> None:
    connection = connection_info(
        ClusterConfig(server="https://x", source="f", certificate=b"PEM", key=b"KEY", ca_data=b"CA"), 0.0
    )
    assert (connection.certificate_data, connection.expiration, connection.token) == ("UEVN", None, None)
    for wrong in ({"server_name": "other"}, {"impersonate_user": "root"}):
        with pytest.raises(ClusterConfigError):
            connection_info(ClusterConfig(server="https://x", source="f", **wrong), 0.0)  # type: ignore[arg-type]


# --- health -------------------------------------------------------------------------------------------------------------

HEALTHY = HealthState(leading=True, synced=True, watch_ages={"pods": 10.0, "services": 70.0}, answer_age_seconds=30.0)


@pytest.mark.parametrize(
    ("changed", "living"),
    [
        ({}, True),
        ({"watch_ages": {"pods": 181.0}}, False),
        ({"overdue_seconds": 181.0}, False),
        ({"overdue_seconds": 20.0}, True),
        ({"watch_ages": {"pods": 999.0}, "answer_age_seconds": 999.0}, True),
        ({"watch_ages": {"pods": 999.0}, "answer_age_seconds": None}, True),
        ({"watch_ages": {"pods": 999.0}, "leading": False}, True),
    ],
)
def test_operator_is_dead_if_watches_are_silent_but_the_api_answers(changed: dict[str, Any], living: bool) -> None:
    values = {
        "leading": True,
        "synced": True,
        "watch_ages": dict(HEALTHY.watch_ages),
        "answer_age_seconds": 30.0,
        **changed,
    }
    assert check_liveness(HealthState(**values)).ok is living


def test_operator_is_ready_when_synced_or_waiting_to_lead() -> None:
    assert [check_readiness(health).ok for health in (HEALTHY, HealthState(leading=True), HealthState())] == [
        True,
        False,
        True,
    ]


def test_stale_state_prevents_deletion() -> None:
    assert stale_cache_reason(HEALTHY) == ""
    assert "pods" in stale_cache_reason(HealthState(True, True, {"pods": None}, 1.0))
    assert "listed" in stale_cache_reason(HealthState(True, False, {}, 1.0))
    assert "answered" in stale_cache_reason(HealthState(True, True, {}, 500.0))


async def test_health_and_metrics_are_served() -> None:
    from aiohttp.test_utils import TestClient, TestServer

    conditions = [
        {"type": "Ready", "status": "False", "reason": "MissingSecret"},
        {"type": "Stalled", "status": "True", "reason": "MissingSecret"},
    ]
    models = [
        {"metadata": {"name": "qwen", "namespace": "chat"}, "status": {"conditions": conditions}},
        {"metadata": {"name": "fresh", "namespace": "chat"}},
    ]
    figures = OperatorMetrics({"leading": ("says", 1.0)}, {"reconciles": ("says", 7.0)}, models)
    pulses = [HEALTHY]
    app = make_application(MetricsCollector(lambda: figures, lambda: pulses[0]), lambda: pulses[0])
    async with TestClient(TestServer(app)) as client:
        metrics = await (await client.get("/metrics")).text()
        assert "fairlead_operator_reconciles_total 7.0" in metrics
        assert 'fairlead_operator_watch_age_seconds{kind="services"} 70.0' in metrics
        labels = 'model="chat/qwen",reason="MissingSecret"'
        assert f'fairlead_operator_model_condition{{{labels},type="Ready"}} 0.0' in metrics
        assert f'fairlead_operator_model_condition{{{labels},type="Stalled"}} 1.0' in metrics
        assert "chat/fresh" not in metrics  # nothing is known of it yet
        assert (await client.get("/readyz")).status == (await client.get("/healthz")).status == 200
        pulses[0] = HealthState(True, False, {"pods": 500.0}, 1.0)
        assert (await client.get("/readyz")).status == (await client.get("/healthz")).status == 503


# --- leading ------------------------------------------------------------------------------------------------------------


def test_identities_differ_between_starts() -> None:
    chances = iter([0.1, 0.2])
    names = {candidate_identity({"HOSTNAME": "pod"}, lambda: next(chances)) for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("pod_") for name in names)


@asynccontextmanager
async def elector_factory() -> AsyncIterator[tuple[FakeApiServer, Callable[[str], LeaderElector]]]:
    time = FakeTime()
    async with fake_api_server() as fake, KubeApi(fake.config(), time, lambda: 0.5, pause=time.pause) as api:
        yield (
            fake,
            lambda me: LeaderElector(api, LeaseCandidate("x", "lease", me), Pacing(time, lambda: 0.5, time.pause)),
        )


async def test_work_ends_before_the_lease_is_released() -> None:
    async with elector_factory() as (fake, election):
        order: list[str] = []
        stopped = asyncio.Event()

        def holder() -> str:
            return str(fake.objects[LEASES.path("x", "lease")]["spec"]["holderIdentity"])

        async def work() -> None:
            stopped.set()
            try:
                await asyncio.Event().wait()
            finally:
                order.append(f"ended, held by {holder()}")

        assert await run_while_leading(election("me"), stopped, work, order.append) == "stop requested"
        assert order == ["leading: there is no lease", "ended, held by me"]
        assert holder() == ""


async def test_stop_while_waiting_ends_and_work_errors_are_raised() -> None:
    async with elector_factory() as (fake, election):
        stopped = asyncio.Event()
        stopped.set()

        async def fail() -> None:
            raise RuntimeError("no")

        fake.put(LEASES, "x", "lease", spec={"holderIdentity": "other", "leaseDurationSeconds": 9_999})
        assert await run_while_leading(election("me"), stopped, fail, lambda _: None) == "stop requested"
        fake.remove(LEASES, "x", "lease")
        with pytest.raises(RuntimeError):
            await run_while_leading(election("me"), asyncio.Event(), fail, lambda _: None)
        assert fake.objects[LEASES.path("x", "lease")]["spec"]["holderIdentity"] == ""


# --- watching -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def running_watcher() -> AsyncIterator[tuple[FakeApiServer, ClusterWatcher, ObjectCache, list[str], FakeTime]]:
    time, shelf, keys = FakeTime(), ObjectCache(), []
    async with fake_api_server() as fake:
        fake.put(MODEL_DEPLOYMENTS, "chat", "qwen")
        fake.put(SERVICES, "default", "kubernetes", spec={"ipFamilies": ["IPv6"]})
        async with KubeApi(fake.config(), time, lambda: 0.5, pause=time.pause) as api:
            watching = ClusterWatcher(
                api, shelf, keys.append, Pacing(time, lambda: 0.5, time.pause), namespaces=("chat",)
            )
            _serve_kinds(fake)
            await watching.discover()
            task = asyncio.ensure_future(watching.run())
            try:
                await watching.wait_synced()
                yield fake, watching, shelf, keys, time
            finally:
                await cancel_and_wait(task)


def _serve_kinds(fake: FakeApiServer) -> None:
    """Discovery: our kinds and OpenShift's constraints, and no LeaderWorkerSet."""
    fake.objects["/apis/serving.fairlead.io/v1alpha1"] = {"resources": [{"name": "modeldeployments"}]}
    constraints = {"resources": [{"name": "securitycontextconstraints"}]}
    fake.objects["/apis/security.openshift.io/v1"] = constraints


async def test_children_are_watched_by_label_and_found_by_model() -> None:
    async with running_watcher() as (fake, watching, shelf, keys, time):
        assert keys == ["chat/qwen"]
        assert watching.capabilities == ClusterCapabilities(ipv6=True, assigns_users=True)
        metadata = {"name": "qwen-main", "namespace": "chat", "labels": LABELS}
        async with KubeApi(fake.config(), time, lambda: 0.5) as api:
            for kind in (SERVICES, SERVICE_ACCOUNTS):
                await api.apply({"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}, "test")
        await wait_until(lambda: keys.count("chat/qwen") == 3)
        seen = shelf.snapshot("chat/qwen")
        assert seen is not None
        assert sorted(seen.children) == [("Service", "qwen-main"), ("ServiceAccount", "qwen-main")]
        fake.remove(SERVICES, "chat", "qwen-main")
        await wait_until(lambda: keys.count("chat/qwen") == 4)
        assert stale_cache_reason(watching.health(True)) == ""


async def test_cluster_that_was_restored_from_a_backup_ends_the_work() -> None:
    async with running_watcher() as (fake, watching, _, _, _):
        restored = asyncio.ensure_future(watching.wait_restored())
        await watching.list_models()
        assert not restored.done()
        for versions in ((50, 1_000), (50, 60)):  # a server that is behind once, and a restored cluster
            assert not restored.done()
            fake._version = versions[0]
            with pytest.raises(FairleadError, match="its version went back"):
                await watching.list_models()
            fake._version = versions[1]
            with contextlib.suppress(FairleadError):
                await watching.list_models()
        await asyncio.wait_for(restored, 5.0)


async def test_list_finds_what_the_model_watch_missed() -> None:
    async with running_watcher() as (fake, watching, shelf, _, time):
        model = shelf.models["chat/qwen"]
        watching.on_model_event("ADDED", model)
        assert watching.health(True).overdue_seconds is None
        fake.put(MODEL_DEPLOYMENTS, "chat", "qwen", spec={"new": True})
        fake.put(MODEL_DEPLOYMENTS, "chat", "second")
        for _ in range(3):
            time.advance(66.0)
            await wait_until(lambda: watching.health(True).answer_age_seconds == 0.0)
        assert shelf.models["chat/qwen"]["spec"] == {"new": True}
        assert "chat/second" in shelf.models
        assert watching.health(True).overdue_seconds == pytest.approx(132.0)
        for missed in list(shelf.models.values()):
            watching.on_model_event("MODIFIED", missed)
        assert watching.health(True).overdue_seconds is None
        fake.remove(MODEL_DEPLOYMENTS, "chat", "second")
        time.advance(66.0)
        await wait_until(lambda: "chat/second" not in shelf.models)


async def test_forbidden_kind_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """An upgrade that keeps the former roles would make the operator never ready, without a
    message.
    """
    async with running_watcher() as (fake, _, _, _, time):
        await wait_until(lambda: fake.watch_count > 0)
        fake.ordered_watch_responses.append(OrderedResponse(403, "Forbidden"))
        fake.end_watches()
        await time.advance_until(lambda: "cannot watch" in caplog.text, 1.0)
        assert caplog.text.count("the API server does not allow this watch") == 1


@pytest.mark.parametrize(
    ("families", "server", "ipv6"),
    [
        (["IPv6", "IPv4"], "https://10.0.0.1:443", True),
        (["IPv4", "IPv6"], "https://[fd00::1]:443", False),
        (None, "https://[fd00::1]:443", True),
        (None, "https://10.0.0.1:443", False),
        (None, "https://api.example.com", False),
    ],
)
def test_pods_use_the_ip_family_of_the_api_server_service(families: list[str] | None, server: str, ipv6: bool) -> None:
    service = None if families is None else {"spec": {"ipFamilies": families}}
    assert is_ipv6_first(service, server) is ipv6


async def test_namespace_that_refuses_lists_keeps_no_other_waiting() -> None:
    time, cache = FakeTime(), ObjectCache()
    async with fake_api_server() as fake, KubeApi(fake.config(), time, lambda: 0.5, pause=time.pause) as api:
        _serve_kinds(fake)
        fake.put(MODEL_DEPLOYMENTS, "chat", "qwen")
        fake.put(MODEL_DEPLOYMENTS, "other", "llama")
        namespaced = (*STANDARD_CHILD_KINDS, PODS, MODEL_DEPLOYMENTS)
        fake.refused_paths = {kind.path("other") for kind in namespaced}
        pacing = Pacing(time, lambda: 0.5, time.pause)
        watching = ClusterWatcher(api, cache, lambda _: None, pacing, namespaces=("chat", "other"))
        await watching.discover()
        task = asyncio.ensure_future(watching.run())
        synced = asyncio.ensure_future(watching.wait_synced())
        try:
            await time.advance_until(synced.done, 10.0)
            assert set(cache.models) == {"chat/qwen"}
            assert watching.refused_namespaces() == {"other"}
            assert stale_cache_reason(watching.health(True)) == ""
            assert check_liveness(watching.health(True)).ok
            fake.refused_paths = {kind.path("chat") for kind in namespaced}
            await watching.list_models()
            assert set(cache.models) == {"chat/qwen", "other/llama"}
            fake.refused_paths |= {kind.path("other") for kind in namespaced}
            with pytest.raises(Forbidden):
                await watching.list_models()
        finally:
            await cancel_and_wait(synced)
            await cancel_and_wait(task)


async def test_cluster_without_our_kinds_is_waited_for() -> None:
    time = FakeTime()
    async with fake_api_server() as fake, KubeApi(fake.config(), time, lambda: 0.5, pause=time.pause) as api:
        watching = ClusterWatcher(api, ObjectCache(), lambda _: None, Pacing(time, lambda: 0.5, time.pause))
        begun = asyncio.ensure_future(watching.discover())
        await wait_until(lambda: bool(time.pending_pauses))
        _serve_kinds(fake)
        time.advance(3.0)
        await begun


async def test_a_process_that_does_not_lead_writes_nothing() -> None:
    async with fake_api_server() as fake:
        options = parse_options(read_settings(OperatorSettings, {}))
        process = Manager(fake.config(), options, FakeTime(), lambda: 0.5, "me", "x")
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "qwen-main", "namespace": "chat"}}
        try:
            with pytest.raises(NotLeading):
                await process._api.apply(service, "fairlead")
            await process._elector.acquire()
            await process._api.apply(service, "fairlead")
            await process._elector.release()
            with pytest.raises(NotLeading):
                await process._api.apply(service, "fairlead")
        finally:
            await process._api.close()
            await process._lease_api.close()
