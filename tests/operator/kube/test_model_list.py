"""The periodic list of models, while the watch delivers, too."""

from typing import Any

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.json_decoding import ObjectList
from fairlead.kube.resources import MODEL_DEPLOYMENTS
from fairlead.runtime.clock import Pacing
from fairlead_operator.kube.object_cache import ObjectCache
from fairlead_operator.kube.watches import ClusterWatcher
from fairlead_testing.kube.fake_server import fake_api_server
from fairlead_testing.waiting import FakeTime


@pytest.mark.parametrize("namespaces", [(), ("chat",)])
async def test_model_that_is_newer_than_the_list_stays(
    namespaces: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion of such a model would be remembered, so that no later list would bring it back."""
    time, cache = FakeTime(), ObjectCache()
    async with fake_api_server() as fake, KubeApi(fake.config(), time, lambda: 0.5, pause=time.pause) as api:
        fake.put(MODEL_DEPLOYMENTS, "chat", "qwen")
        pacing = Pacing(time, lambda: 0.5, time.pause)
        watcher = ClusterWatcher(api, cache, lambda _: None, pacing, namespaces=namespaces)
        list_objects = KubeApi.list

        async def list_slowly(api: KubeApi, *arguments: Any, **options: Any) -> ObjectList:
            listed = await list_objects(api, *arguments, **options)
            fake.put(MODEL_DEPLOYMENTS, "chat", "second")
            watcher.on_model_event("ADDED", fake.objects[MODEL_DEPLOYMENTS.path("chat", "second")])
            return listed

        with monkeypatch.context() as patch:
            patch.setattr(KubeApi, "list", list_slowly)
            await watcher.list_models()
        assert set(cache.models) == {"chat/qwen", "chat/second"}
        fake.remove(MODEL_DEPLOYMENTS, "chat", "second")
        await watcher.list_models()
        assert set(cache.models) == {"chat/qwen"}
