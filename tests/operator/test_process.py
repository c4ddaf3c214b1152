"""What is around the loop: settings, login, health, who leads, what is heard."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import SettingsError
from fairlead.kube.access import Access, AccessError
from fairlead.kube.client import KubeApi
from fairlead.kube.lease import Election, Terms, identity
from fairlead.kube.resource import LEASES, MODEL_DEPLOYMENTS, SERVICE_ACCOUNTS, SERVICES
from fairlead.settings import OperatorSettings, read
from fairlead.tasks import ended
from fairlead.testing.fake_kube import Answer, FakeKube, fake_kube
from fairlead.testing.timeline import Timeline
from fairlead.testing.waiting import until
from fairlead_operator.__main__ import main
from fairlead_operator.leading import while_leading
from fairlead_operator.liveness import Figures, Metrics, application
from fairlead_operator.login import TOKEN_SECONDS, connection
from fairlead_operator.observe import Shelf
from fairlead_operator.pulse import Pulse, alive, ready, stale
from fairlead_operator.seam import Cluster
from fairlead_operator.settings import options
from fairlead_operator.watching import Watching, ipv6_first

LABELS = {"app.kubernetes.io/managed-by": "fairlead", "fairlead.io/model": "qwen"}


# --- settings -----------------------------------------------------------------------------------------------------------


def test_settings_have_units_and_defaults() -> None:
    found = options(read(OperatorSettings, {}))
    assert (found.namespaces, found.hands, found.resync_seconds, found.peers) == ((), 8, 60.0, None)
    assert found.terms == Terms(15.0, 10.0, 2.0)
    given = {
        "FAIRLEAD_WATCH_NAMESPACES": "chat, search",
        "FAIRLEAD_ENGINE_IMAGES": "vllm=r/vllm:1,sim=r:5000/sim:2",
        "FAIRLEAD_ENGINE_PULL_SECRETS": "a,b",
        "FAIRLEAD_GATEWAY_PODS": "fairlead/app=gateway,tier=x; other/app=y",
    }
    found = options(read(OperatorSettings, given))
    assert found.namespaces == ("chat", "search")
    assert {str(kind): image for kind, image in found.installation.images.items()} == {
        "vllm": "r/vllm:1",
        "sim": "r:5000/sim:2",
    }
    assert found.installation.pull_secrets == ("a", "b")
    assert found.peers is not None
    assert [(peer.namespace, peer.labels) for peer in found.peers] == [
        ("fairlead", {"app": "gateway", "tier": "x"}),
        ("other", {"app": "y"}),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WATCH_NAMESPACES", "Chat"),
        ("RECONCILERS", "0"),
        ("RECONCILERS", "many"),
        ("RESYNC", "1s"),
        ("RESYNC", "soon"),
        ("LEASE", "2h"),
        ("LOG_LEVEL", "loud"),
        ("ENGINE_IMAGES", "vllm"),
        ("ENGINE_IMAGES", "custom=x"),
        ("GATEWAY_PODS", "fairlead"),
        ("GATEWAY_PODS", "fairlead/app"),
        ("GATEWAY_PODS", "/app=x"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"FAIRLEAD_{name}"):
        options(read(OperatorSettings, {f"FAIRLEAD_{name}": value}))


def test_a_process_that_cannot_start_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert main([]) == 2
    assert "no kubeconfig" in capsys.readouterr().err


# --- login --------------------------------------------------------------------------------------------------------------


def test_a_rotating_token_is_read_each_time_and_asked_for_again_in_time(tmp_path: Path) -> None:
    token = tmp_path / "token"
    access = Access(server="https://[fd00::1]:443", found="a pod", token_file=token, authority_file=tmp_path / "ca.crt")
    for text in ("one", "two"):
        token.write_text(text + "\n")
        found = connection(access, 1_000.0)
        assert (found.token, found.scheme, found.server) == (text, "Bearer", "https://[fd00::1]:443")
        assert found.expiration is not None
        assert found.expiration.timestamp() == 1_000.0 + TOKEN_SECONDS
    token.unlink()
    with pytest.raises(AccessError, match="cannot read the token"):
        connection(access, 0.0)


def test_certificates_are_handed_over_and_what_kopf_cannot_do_is_named() -> None:
    found = connection(Access(server="https://x", found="f", certificate=b"PEM", key=b"KEY", authority=b"CA"), 0.0)
    assert (found.certificate_data, found.expiration, found.token) == ("UEVN", None, None)
    for wrong in ({"server_name": "other"}, {"acting_as": "root"}):
        with pytest.raises(AccessError):
            connection(Access(server="https://x", found="f", **wrong), 0.0)  # type: ignore[arg-type]


# --- health -------------------------------------------------------------------------------------------------------------

WELL = Pulse(leading=True, synced=True, watches={"pods": 10.0, "services": 70.0}, answered=30.0)


@pytest.mark.parametrize(
    ("changed", "living"),
    [
        ({}, True),
        ({"watches": {"pods": 181.0}}, False),
        ({"overdue": 181.0}, False),
        ({"overdue": 20.0}, True),
        ({"watches": {"pods": 999.0}, "answered": 999.0}, True),
        ({"watches": {"pods": 999.0}, "answered": None}, True),
        ({"watches": {"pods": 999.0}, "leading": False}, True),
    ],
)
def test_dead_is_who_hears_nothing_while_the_api_server_answers(changed: dict[str, Any], living: bool) -> None:
    values = {"leading": True, "synced": True, "watches": dict(WELL.watches), "answered": 30.0, **changed}
    assert alive(Pulse(**values)).well is living


def test_ready_is_who_knows_everything_or_waits_to_lead() -> None:
    assert [ready(one).well for one in (WELL, Pulse(leading=True), Pulse())] == [True, False, True]


def test_old_news_is_no_ground_to_delete() -> None:
    assert stale(WELL) == ""
    assert "pods" in stale(Pulse(True, True, {"pods": None}, 1.0))
    assert "listed" in stale(Pulse(True, False, {}, 1.0))
    assert "answered" in stale(Pulse(True, True, {}, 500.0))


def test_health_and_metrics_are_served() -> None:
    async def main() -> None:
        from aiohttp.test_utils import TestClient, TestServer

        conditions = [
            {"type": "Ready", "status": "False", "reason": "MissingSecret"},
            {"type": "Stalled", "status": "True", "reason": "MissingSecret"},
        ]
        models = [
            {"metadata": {"name": "qwen", "namespace": "chat"}, "status": {"conditions": conditions}},
            {"metadata": {"name": "fresh", "namespace": "chat"}},
        ]
        figures = Figures({"leading": ("says", 1.0)}, {"reconciles": ("says", 7.0)}, models)
        pulses = [WELL]
        app = application(Metrics(lambda: figures, lambda: pulses[0]), lambda: pulses[0])
        async with TestClient(TestServer(app)) as client:
            metrics = await (await client.get("/metrics")).text()
            assert "fairlead_operator_reconciles_total 7.0" in metrics
            assert 'fairlead_operator_watch_age_seconds{kind="services"} 70.0' in metrics
            labels = 'model="chat/qwen",reason="MissingSecret"'
            assert f'fairlead_operator_model_condition{{{labels},type="Ready"}} 0.0' in metrics
            assert f'fairlead_operator_model_condition{{{labels},type="Stalled"}} 1.0' in metrics
            assert "chat/fresh" not in metrics  # nothing is known of it yet
            assert (await client.get("/readyz")).status == (await client.get("/healthz")).status == 200
            pulses[0] = Pulse(True, False, {"pods": 500.0}, 1.0)
            assert (await client.get("/readyz")).status == (await client.get("/healthz")).status == 503

    asyncio.run(main())


# --- leading ------------------------------------------------------------------------------------------------------------


def test_identities_differ_between_starts() -> None:
    chances = iter([0.1, 0.2])
    names = {identity({"HOSTNAME": "pod"}, lambda: next(chances)) for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("pod_") for name in names)


def lead(check: Callable[[FakeKube, Callable[[str], Election]], Awaitable[None]]) -> None:
    async def main() -> None:
        time = Timeline()
        async with fake_kube() as fake, KubeApi(fake.access(), time, lambda: 0.5, pause=time.pause) as api:
            await check(fake, lambda me: Election(api, "x", "lease", me, time, lambda: 0.5, pause=time.pause))

    asyncio.run(main())


def test_work_ends_before_the_lease_is_given_back() -> None:
    async def check(fake: FakeKube, election: Callable[[str], Election]) -> None:
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

        assert await while_leading(election("me"), stopped, work, order.append) == "it was told to stop"
        assert order == ["leading: there is no lease", "ended, held by me"]
        assert holder() == ""

    lead(check)


def test_who_is_told_to_stop_while_waiting_stops_and_what_work_raises_is_raised() -> None:
    async def check(fake: FakeKube, election: Callable[[str], Election]) -> None:
        stopped = asyncio.Event()
        stopped.set()

        async def fail() -> None:
            raise RuntimeError("no")

        fake.put(LEASES, "x", "lease", spec={"holderIdentity": "other", "leaseDurationSeconds": 9_999})
        assert await while_leading(election("me"), stopped, fail, lambda _: None) == "it was told to stop"
        fake.remove(LEASES, "x", "lease")
        with pytest.raises(RuntimeError):
            await while_leading(election("me"), asyncio.Event(), fail, lambda _: None)
        assert fake.objects[LEASES.path("x", "lease")]["spec"]["holderIdentity"] == ""

    lead(check)


# --- watching -----------------------------------------------------------------------------------------------------------


def watch(check: Callable[[FakeKube, Watching, Shelf, list[str], Timeline], Awaitable[None]]) -> None:
    async def main() -> None:
        time, shelf, keys = Timeline(), Shelf(), []
        async with fake_kube() as fake:
            fake.put(MODEL_DEPLOYMENTS, "chat", "qwen")
            fake.put(SERVICES, "default", "kubernetes", spec={"ipFamilies": ["IPv6"]})
            async with KubeApi(fake.access(), time, lambda: 0.5, pause=time.pause) as api:
                watching = Watching(api, shelf, keys.append, time, lambda: 0.5, namespaces=("chat",), pause=time.pause)
                _serve_kinds(fake)
                await watching.begin()
                task = asyncio.ensure_future(watching.run())
                try:
                    await watching.synced()
                    await check(fake, watching, shelf, keys, time)
                finally:
                    await ended(task)

    asyncio.run(main())


def _serve_kinds(fake: FakeKube) -> None:
    """Discovery: the cluster knows our kinds and no LeaderWorkerSet."""
    fake.objects["/apis/serving.fairlead.io/v1alpha1"] = {"resources": [{"name": "modeldeployments"}]}


def test_children_are_watched_by_label_and_found_by_model() -> None:
    async def check(fake: FakeKube, watching: Watching, shelf: Shelf, keys: list[str], time: Timeline) -> None:
        assert keys == ["chat/qwen"]
        assert watching.cluster == Cluster(ipv6=True)
        metadata = {"name": "qwen-main", "namespace": "chat", "labels": LABELS}
        async with KubeApi(fake.access(), time, lambda: 0.5) as api:
            for kind in (SERVICES, SERVICE_ACCOUNTS):
                await api.apply({"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}, "test")
        await until(lambda: keys.count("chat/qwen") == 3)
        seen = shelf.look("chat/qwen")
        assert seen is not None
        assert sorted(seen.children) == [("Service", "qwen-main"), ("ServiceAccount", "qwen-main")]
        fake.remove(SERVICES, "chat", "qwen-main")
        await until(lambda: keys.count("chat/qwen") == 4)
        assert stale(watching.pulse(True)) == ""

    watch(check)


def test_the_list_finds_what_the_watch_of_models_missed_and_says_how_long() -> None:
    async def check(fake: FakeKube, watching: Watching, shelf: Shelf, keys: list[str], time: Timeline) -> None:
        model = shelf.models["chat/qwen"]
        watching.heard("ADDED", model)
        assert watching.pulse(True).overdue is None
        fake.put(MODEL_DEPLOYMENTS, "chat", "qwen", spec={"new": True})
        fake.put(MODEL_DEPLOYMENTS, "chat", "second")
        for _ in range(3):
            time.advance(66.0)
            await until(lambda: watching.pulse(True).answered == 0.0)
        assert shelf.models["chat/qwen"]["spec"] == {"new": True}
        assert "chat/second" in shelf.models
        assert watching.pulse(True).overdue == pytest.approx(132.0)
        for one in list(shelf.models.values()):
            watching.heard("MODIFIED", one)
        assert watching.pulse(True).overdue is None
        fake.remove(MODEL_DEPLOYMENTS, "chat", "second")
        time.advance(66.0)
        await until(lambda: "chat/second" not in shelf.models)

    watch(check)


def test_a_kind_that_may_not_be_watched_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """As after an upgrade that left the former roles in place: the operator would never be ready, and say nothing."""

    async def check(fake: FakeKube, watching: Watching, shelf: Shelf, keys: list[str], time: Timeline) -> None:
        await until(lambda: fake.watching > 0)
        fake.watch_answers.append(Answer(403, "Forbidden"))
        fake.end_watches()
        await until(lambda: "cannot be followed" in caplog.text)
        assert caplog.text.count("cannot be followed: it may not be watched so") == 1

    watch(check)


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
def test_pods_have_addresses_as_the_api_servers_service_has(
    families: list[str] | None, server: str, ipv6: bool
) -> None:
    service = None if families is None else {"spec": {"ipFamilies": families}}
    assert ipv6_first(service, server) is ipv6


def test_a_cluster_without_our_kinds_is_waited_for() -> None:
    async def main() -> None:
        time = Timeline()
        async with fake_kube() as fake, KubeApi(fake.access(), time, lambda: 0.5, pause=time.pause) as api:
            watching = Watching(api, Shelf(), lambda _: None, time, lambda: 0.5, pause=time.pause)
            begun = asyncio.ensure_future(watching.begin())
            await until(lambda: bool(time.waiting))
            _serve_kinds(fake)
            time.advance(3.0)
            await begun

    asyncio.run(main())
