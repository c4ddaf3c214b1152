"""kopf's watch of models on a fake API server: what it keeps of large models."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from fairlead.kube.field_managers import CHANGED_BY_ANNOTATION
from fairlead.kube.resources import CUSTOM_RESOURCE_DEFINITIONS, MODEL_DEPLOYMENTS, NAMESPACES, Manifest, name_of
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_operator.kube.kopf_watch import MODELS_PER_PAGE, KopfWatch
from fairlead_operator.kube.watches import ClusterWatcher
from fairlead_testing.kube.fake_server import FakeApiServer, fake_api_server
from fairlead_testing.waiting import FakeTime, wait_until


class Recorder:
    """The events that kopf reports, instead of a watcher."""

    def __init__(self) -> None:
        self.events: list[tuple[str | None, Manifest]] = []
        self.refused: frozenset[str] = frozenset()

    def refused_namespaces(self) -> frozenset[str]:
        """Returns the namespaces that were refused at the last list."""
        return self.refused

    def on_model_event(self, type: str | None, model: Manifest) -> None:
        """Records an event."""
        self.events.append((type, model))


def serve_discovery(fake: FakeApiServer) -> None:
    """Serves the kinds that kopf looks up before it watches: those of kopf and the models."""
    groups = []
    for kind in (NAMESPACES, CUSTOM_RESOURCE_DEFINITIONS, MODEL_DEPLOYMENTS):
        version = {"groupVersion": kind.api_version, "version": kind.version}
        groups.append({"name": kind.group, "versions": [version], "preferredVersion": version})
        served = {"name": kind.plural, "kind": kind.kind, "singularName": "", "namespaced": kind.namespaced}
        path = kind.path(None).removesuffix(f"/{kind.plural}")
        fake.objects[path] = {"resources": [{**served, "verbs": ["list", "watch"]}]}
    fake.objects["/api"] = {"versions": ["v1"]}
    fake.objects["/apis"] = {"groups": groups[1:]}


@asynccontextmanager
async def running_watch(
    before: Callable[[FakeApiServer], None], namespaces: tuple[str, ...] = ("chat",)
) -> AsyncIterator[tuple[FakeApiServer, Recorder]]:
    async with fake_api_server() as fake:
        serve_discovery(fake)
        before(fake)
        fake.token = "secret"
        recorder = Recorder()
        access = fake.config(token=fake.token)
        watch = KopfWatch(cast(ClusterWatcher, recorder), access, FakeTime(), "me", namespaces)
        task = asyncio.ensure_future(watch.run())
        try:
            yield fake, recorder
        finally:
            await cancel_and_wait(task)


async def test_namespace_that_refused_the_watch_is_watched_once_it_can_be_listed() -> None:
    def before(fake: FakeApiServer) -> None:
        fake.put(MODEL_DEPLOYMENTS, "chat", "qwen")
        fake.refused_paths.add(MODEL_DEPLOYMENTS.path("other"))

    async with running_watch(before, ("chat", "other")) as (fake, recorder):
        await wait_until(lambda: fake.watch_count == 1)
        recorder.refused = frozenset({"other"})
        fake.put(MODEL_DEPLOYMENTS, "chat", "later")
        await wait_until(lambda: any(name_of(model) == "later" for _, model in recorder.events))
        fake.refused_paths.clear()
        fake.put(MODEL_DEPLOYMENTS, "other", "llama")
        recorder.refused = frozenset()
        await wait_until(lambda: any(name_of(model) == "llama" for _, model in recorder.events))


def put_large_model(fake: FakeApiServer, name: str) -> None:
    pool: dict[str, Any] = {"name": "main", "template": {"spec": {"x": [{}] * 5_000}}}
    stored = fake.put(MODEL_DEPLOYMENTS, "chat", name, spec={"pools": [pool]})
    labels = {f"l{number}": "x" for number in range(1_000)}
    metadata = {**stored["metadata"], "labels": labels, "annotations": {"x": "y"}, "managedFields": [{"manager": "m"}]}
    fake._store(MODEL_DEPLOYMENTS.path("chat", name), {**stored, "metadata": metadata})


def assert_small(model: Manifest) -> None:
    assert set(model["metadata"]) == {"name", "namespace", "uid", "resourceVersion", "annotations"}
    assert model["metadata"]["annotations"].keys() == {CHANGED_BY_ANNOTATION}
    assert model["spec"]["pools"][0]["template"]["spec"].keys() == {"oversized"}


async def test_kopf_lists_large_models_in_pages_and_keeps_little_of_each() -> None:
    count = 2 * MODELS_PER_PAGE + 1

    def before(fake: FakeApiServer) -> None:
        for number in range(count):
            put_large_model(fake, f"m{number:02d}")

    async with running_watch(before) as (fake, recorder):
        await wait_until(lambda: len(recorder.events) >= count)
        assert {name_of(model) for _, model in recorder.events} == {f"m{number:02d}" for number in range(count)}
        for type, model in recorder.events:
            assert type is None
            assert_small(model)
        lists = [call for call in fake.calls if call.path.endswith("/modeldeployments") and not call.is_watch]
        assert [request.query.get("limit") for request in lists] == [str(MODELS_PER_PAGE)] * 3


async def test_kopf_keeps_little_of_a_large_model_that_changes() -> None:
    async with running_watch(lambda fake: None) as (fake, recorder):
        await wait_until(lambda: fake.watch_count == 1)
        put_large_model(fake, "late")
        await wait_until(lambda: len(recorder.events) == 2)
        assert_small(recorder.events[-1][1])
