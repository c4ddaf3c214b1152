"""`KubeApi` with a fake API server: requests, retries, and requests that it never repeats."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import (
    AlreadyExists,
    Conflict,
    EvictionBlocked,
    Gone,
    Invalid,
    NotFound,
    TooManyRequests,
    Unauthenticated,
    Unreachable,
)
from fairlead.kube.resources import CONFIG_MAPS, MODEL_DEPLOYMENTS, NODES, PODS, Manifest, ObjectSelection
from fairlead.kube.transport.kubeconfig import ClusterConfig
from fairlead.kube.watch_events import WatchEventType
from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_testing.http.scripted_servers import tcp_server
from fairlead_testing.kube.fake_server import FakeApiServer, OrderedResponse, fake_api_server
from fairlead_testing.waiting import InstantTime, wait_until

pytestmark = pytest.mark.simulated

MAP: Manifest = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "m", "namespace": "x"},
    "data": {"a": "1"},
}


@asynccontextmanager
async def client_of_fake_server(
    limits: Limits | None = None, **access: Any
) -> AsyncIterator[tuple[FakeApiServer, KubeApi, InstantTime]]:
    async with fake_api_server() as fake:
        time = InstantTime()
        async with KubeApi(fake.config(**access), time, lambda: 0.0, limits=limits, pause=time.pause) as api:
            yield fake, api, time


async def test_apply_creates_and_repeating_it_changes_nothing() -> None:
    async with client_of_fake_server() as (fake, api, _):
        first = await api.apply(MAP, "operator")
        again = await api.apply(MAP, "operator", force=False, dry_run=True)
        assert first == again == await api.get(CONFIG_MAPS, "x", "m")
        sent = fake.calls[0]
        assert (sent.method, sent.path) == ("PATCH", "/api/v1/namespaces/x/configmaps/m")
        assert sent.content == "application/apply-patch+yaml"
        assert sent.query == {"fieldManager": "operator", "force": "true", "fieldValidation": "Strict"}
        assert fake.calls[1].query["force"] == "false"
        assert fake.calls[1].query["dryRun"] == "All"


async def test_status_is_applied_alone() -> None:
    async with client_of_fake_server() as (fake, api, _):
        fake.put(MODEL_DEPLOYMENTS, "x", "m", spec={"a": 1})
        whole = {
            "apiVersion": "serving.fairlead.io/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": "m", "namespace": "x", "labels": {"not": "sent"}},
            "spec": {"a": 2},
            "status": {"ready": 1},
        }
        applied = await api.apply_status(whole, "operator")
        assert (applied["spec"], applied["status"]) == ({"a": 1}, {"ready": 1})
        assert "labels" not in applied["metadata"]
        assert fake.calls[-1].path.endswith("/modeldeployments/m/status")


async def test_create_patch_delete_evict() -> None:
    async with client_of_fake_server() as (fake, api, _):
        created = await api.create(MAP, "operator")
        with pytest.raises(AlreadyExists):
            await api.create(MAP, "operator")
        stale = {"metadata": {"resourceVersion": "1"}, "data": {"a": "2"}}
        with pytest.raises(Conflict):
            await api.patch_merge(CONFIG_MAPS, "x", "m", stale, "operator")
        changed = await api.patch_merge(CONFIG_MAPS, "x", "m", {"data": {"a": None, "b": "2"}}, "operator")
        assert changed["data"] == {"b": "2"}
        assert not await api.delete(CONFIG_MAPS, "x", "m", uid="another")
        assert await api.delete(CONFIG_MAPS, "x", "m", uid=created["metadata"]["uid"])
        assert not await api.delete(CONFIG_MAPS, "x", "m")
        fake.put(PODS, "x", "p")
        assert await api.evict("x", "p")
        assert not await api.evict("x", "p")
        with pytest.raises(NotFound):
            await api.get(PODS, "x", "p")


async def test_blocked_eviction_is_not_retried() -> None:
    async with client_of_fake_server() as (fake, api, _):
        fake.put(PODS, "x", "p")
        fake.ordered_responses.append(OrderedResponse(429, "TooManyRequests", causes=({"reason": "DisruptionBudget"},)))
        with pytest.raises(EvictionBlocked):
            await api.evict("x", "p", uid="uid-1")
        assert len(fake.calls) == 1


async def test_list_reads_pages_and_completes_items() -> None:
    async with client_of_fake_server() as (fake, api, _):
        fake.bare = True
        for number in range(5):
            fake.put(PODS, f"n{number % 2}", f"p{number}")
        fake.put(NODES, None, "node")
        listed = await api.list(PODS, limit=2, labels="a=b", fields="c=d")
        assert sorted(item["metadata"]["name"] for item in listed.items) == ["p0", "p1", "p2", "p3", "p4"]
        assert {(item["apiVersion"], item["kind"]) for item in listed.items} == {("v1", "Pod")}
        assert listed.resource_version == "106"
        assert [(call.query["limit"], call.query["labelSelector"]) for call in fake.calls] == [("2", "a=b")] * 3
        assert len((await api.list(PODS, "n1")).items) == 2


async def test_page_with_too_many_bytes_is_requested_with_fewer_objects() -> None:
    async with client_of_fake_server(replace(Limits(), kube_page_bytes=10_000)) as (fake, api, time):
        for number in range(20):
            fake.put(CONFIG_MAPS, "x", f"m{number:02}", data={"a": "b" * 1_000})
        listed = await api.list(CONFIG_MAPS)
        assert [manifest["metadata"]["name"] for manifest in listed.items] == [f"m{number:02}" for number in range(20)]
        assert [call.query["limit"] for call in fake.calls][:3] == ["500", "62", "7"]
        assert time.pauses == []


async def test_object_that_is_larger_than_a_page_is_refused() -> None:
    async with client_of_fake_server(replace(Limits(), kube_page_bytes=1_000)) as (fake, api, _):
        fake.put(CONFIG_MAPS, "x", "m", data={"a": "b" * 2_000})
        with pytest.raises(Unreachable, match="more than 1000 bytes"):
            await api.list(CONFIG_MAPS)


async def test_object_nested_10000_levels_does_not_end_a_list() -> None:
    async with client_of_fake_server() as (fake, api, _):
        deep = b'{"a":' * 10_000 + b"1" + b"}" * 10_000
        items = b'[{"metadata": {"name": "deep"}, "spec": %s}, {"metadata": {"name": "flat"}}]' % deep
        body = b'{"metadata": {"resourceVersion": "5"}, "items": %s}' % items
        fake.ordered_responses.append(OrderedResponse(200, body=body))
        listed = await api.list(MODEL_DEPLOYMENTS)
        assert [manifest["metadata"]["name"] for manifest in listed.items] == ["deep", "flat"]
        assert listed.resource_version == "5"


async def test_list_with_expired_pages_is_repeated_in_one_piece() -> None:
    async with client_of_fake_server() as (fake, api, _):
        for number in range(3):
            fake.put(PODS, "x", f"p{number}")
        fake.ordered_responses += [OrderedResponse(410, "Expired")]
        assert len((await api.list(PODS, limit=2)).items) == 3
        assert "limit" not in fake.calls[-1].query
        fake.ordered_responses += [OrderedResponse(410, "Expired"), OrderedResponse(410, "Expired")]
        with pytest.raises(Gone):
            await api.list(PODS, limit=2)


@pytest.mark.parametrize(
    "order",
    [
        OrderedResponse(429, headers={"Retry-After": "3"}),
        OrderedResponse(503),
        OrderedResponse(500, body=b"<html>"),
        OrderedResponse(reset=True),
    ],
)
async def test_temporary_errors_are_retried(order: OrderedResponse) -> None:
    async with client_of_fake_server() as (fake, api, time):
        fake.ordered_responses += [order, order]
        assert (await api.apply(MAP, "operator"))["data"] == {"a": "1"}
        assert len(fake.calls) == 3
        asked = 3.0 if order.headers else 0.0
        assert time.pauses == pytest.approx([asked + 0.1, asked + 0.2])


async def test_permanent_errors_are_raised_with_the_reason() -> None:
    async with client_of_fake_server() as (fake, api, time):
        fake.ordered_responses.extend([OrderedResponse(503, message="etcd is away")] * 5)
        with pytest.raises(Unreachable, match="etcd is away"):
            await api.get(PODS, "x", "p")
        assert len(time.pauses) == 4
        fake.ordered_responses.append(OrderedResponse(429, headers={"Retry-After": "100"}))
        with pytest.raises(TooManyRequests) as raised:
            await api.get(PODS, "x", "p")
        assert raised.value.retry_after_seconds == 100.0
        assert len(time.pauses) == 4


@pytest.mark.parametrize(
    "order", [OrderedResponse(reset=True, takes_effect=True), OrderedResponse(500, takes_effect=True)]
)
async def test_create_with_lost_response_is_not_repeated(order: OrderedResponse) -> None:
    async with client_of_fake_server() as (fake, api, _):
        fake.ordered_responses.append(order)
        with pytest.raises(Unreachable):
            await api.create(MAP, "operator")
        assert fake.call_count("POST") == 1
        assert (await api.get(CONFIG_MAPS, "x", "m"))["data"] == {"a": "1"}


async def test_rejected_create_is_repeated() -> None:
    async with client_of_fake_server() as (fake, api, _):
        fake.ordered_responses += [OrderedResponse(429), OrderedResponse(503, headers={"Retry-After": "1"})]
        assert (await api.create(MAP, "operator"))["data"] == {"a": "1"}
        assert fake.call_count("POST") == 3


@pytest.mark.parametrize("known", [True, False])
async def test_delete_with_lost_response_spares_a_new_object(known: bool) -> None:
    async with fake_api_server() as fake:

        async def meanwhile(seconds: float) -> None:
            fake.put(PODS, "x", "p")

        async with KubeApi(fake.config(), ManualClock(), lambda: 0.0, pause=meanwhile) as api:
            uid = fake.put(PODS, "x", "p")["metadata"]["uid"]
            looked = OrderedResponse(200, body=b'{"metadata": {"uid": "%s"}}' % uid.encode())
            fake.ordered_responses += [*([] if known else [looked]), OrderedResponse(503, takes_effect=True)]
            assert not await api.delete(PODS, "x", "p", uid=uid if known else None)  # the first one did it
        assert [item["metadata"]["uid"] for item in fake.objects.values()] == ["uid-2"]


async def test_refused_connection_is_retried_even_for_create() -> None:
    async with fake_api_server() as fake:
        access = fake.config()
    time = InstantTime()
    async with KubeApi(access, time, lambda: 0.0, pause=time.pause) as api:
        with pytest.raises(Unreachable, match="from a test"):
            await api.create(MAP, "operator")
    assert len(time.pauses) == 4


async def test_rotated_token_is_reloaded_at_once(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    async with client_of_fake_server(token_file=file) as (fake, api, time):
        fake.token = "old"
        await api.apply(MAP, "operator")
        fake.token = "new"
        file.write_text("new")
        await api.apply(MAP, "operator")
        assert [call.token for call in fake.calls] == ["old", "old", "new"]
        fake.token = "newer"
        with pytest.raises(Unauthenticated, match="not accepted"):
            await api.apply(MAP, "operator")
        assert len(fake.calls) == 5
        assert time.pauses == []


async def test_rejected_static_token_is_not_retried() -> None:
    async with client_of_fake_server(token="t-o-k-e-n") as (fake, api, _):
        fake.token = "another"
        with pytest.raises(Unauthenticated) as raised:
            await api.list(PODS)
        assert "t-o-k-e-n" not in str(raised.value)
        assert len(fake.calls) == 1


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (OrderedResponse(200, body=b"{"), "not JSON"),
        (OrderedResponse(200, body=b"[]"), "not an object"),
        (OrderedResponse(200, body=b'"%s"' % (b"x" * 4096)), "more than 1024 bytes"),
    ],
)
async def test_invalid_response_is_unreachable(order: OrderedResponse, words: str) -> None:
    async with client_of_fake_server(replace(Limits(), kube_response_bytes=1024, kube_attempts=1)) as (fake, api, _):
        fake.ordered_responses.append(order)
        with pytest.raises(Unreachable, match=words):
            await api.get(PODS, "x", "p")


async def test_redirect_is_not_followed() -> None:
    async with client_of_fake_server(token="t") as (fake, api, _):
        fake.ordered_responses.append(OrderedResponse(302, headers={"Location": f"{fake.url}/elsewhere"}))
        with pytest.raises(Invalid):
            await api.get(PODS, "x", "p")
        assert len(fake.calls) == 1


async def test_silent_api_server_times_out() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with tcp_server(mute) as server:
        port = server.sockets[0].getsockname()[1]
        access, time = ClusterConfig(f"http://127.0.0.1:{port}", "a test"), InstantTime()
        limits = replace(Limits(), kube_response_seconds=0.05, kube_attempts=2)
        async with KubeApi(access, time, lambda: 0.0, limits=limits, pause=time.pause) as api:
            with pytest.raises(Unreachable, match="Timeout"):
                await api.get(PODS, "x", "p")
        assert len(time.pauses) == 1


async def test_kind_is_served_if_the_api_server_lists_it() -> None:
    async with client_of_fake_server() as (fake, api, _):
        assert not await api.has_resource(MODEL_DEPLOYMENTS)
        fake.ordered_responses.append(OrderedResponse(200, body=b'{"resources": [{"name": "pods"}]}'))
        assert await api.has_resource(PODS)
        fake.ordered_responses.append(OrderedResponse(200, body=b'{"gitVersion": "v1.36.3"}'))
        assert await api.version() == "v1.36.3"


# --- watching -----------------------------------------------------------------------------------------------------------


async def read_watch(fake: FakeApiServer, api: KubeApi, since: str, most: int) -> list[tuple[WatchEventType, str]]:
    pairs: list[tuple[WatchEventType, str]] = []
    async with aclosing(api.watch(ObjectSelection(PODS, "x"), resource_version=since, seconds=300.4)) as changes:
        async for change in changes:
            pairs.append((change.type, change.object["metadata"].get("name", "")))
            if len(pairs) == most:
                break
    return pairs


async def test_watch_yields_events_until_it_ends() -> None:
    async with client_of_fake_server() as (fake, api, _):
        since = fake.put(PODS, "x", "a")["metadata"]["resourceVersion"]
        fake.put(PODS, "y", "elsewhere")
        fake.put(PODS, "x", "b")
        fake.put(PODS, "x", "b", spec={"nodeName": "n"})
        fake.remove(PODS, "x", "a")
        expected = [(WatchEventType.ADDED, "b"), (WatchEventType.MODIFIED, "b"), (WatchEventType.DELETED, "a")]
        assert await read_watch(fake, api, since, 3) == expected
        asked = fake.calls[-1].query
        assert (asked["allowWatchBookmarks"], asked["timeoutSeconds"]) == ("true", "300")


async def test_many_watches_leave_connections_for_requests() -> None:
    """An operator with nine namespaces watches twelve kinds in each, more than a client's default."""
    async with client_of_fake_server() as (fake, api, _):
        since = fake.put(PODS, "x", "a")["metadata"]["resourceVersion"]
        watches = [asyncio.ensure_future(read_watch(fake, api, since, 1)) for _ in range(110)]
        await wait_until(lambda: fake.watch_count == len(watches))
        fake.put(PODS, "x", "b")
        assert await asyncio.gather(*watches) == [[(WatchEventType.ADDED, "b")]] * len(watches)


async def test_watch_from_expired_version_raises_gone() -> None:
    async with client_of_fake_server() as (fake, api, _):
        fake.put(PODS, "x", "a")
        fake.forget()
        with pytest.raises(Gone, match="too old resource version"):
            await read_watch(fake, api, "1", 1)
        fake.ordered_watch_responses.append(OrderedResponse(410, "Expired"))
        with pytest.raises(Gone):
            await read_watch(fake, api, "101", 1)


async def test_watch_is_retried_only_for_a_rotated_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    async with client_of_fake_server(token_file=file) as (fake, api, time):
        fake.token = "old"
        fake.put(PODS, "x", "a")
        await api.list(PODS)
        fake.token = "new"
        file.write_text("new")
        assert await read_watch(fake, api, "100", 1) == [(WatchEventType.ADDED, "a")]
        fake.ordered_watch_responses += [
            OrderedResponse(503),
            OrderedResponse(reset=True),
            OrderedResponse(reset=True),
        ]  # aiohttp itself tries an old connection's once more
        for _ in range(2):
            with pytest.raises(Unreachable):
                await read_watch(fake, api, "100", 1)
        assert time.pauses == []


@pytest.mark.parametrize(
    "line", [b"{}", b"[]", b"x", b'{"type": "ADDED", "object": 3}', b'{"type": "NEW", "object": {}}', b"y" * 5000]
)
async def test_invalid_event_breaks_the_watch(line: bytes) -> None:
    async with client_of_fake_server(replace(Limits(), kube_event_bytes=4096)) as (fake, api, _):
        fake.ordered_watch_responses.append(OrderedResponse(200, body=line + b"\n" if len(line) < 100 else line))
        with pytest.raises(Unreachable):
            await read_watch(fake, api, "100", 1)
