"""Objects are found by their model without reading those of all others."""

from typing import Any

from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead_autoscaler.kubernetes.target import ModelIndex


def pod(name: str, model: str, namespace: str = "chat") -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "labels": {"fairlead.io/model": model}}
    return {"kind": "Pod", "metadata": metadata}


def test_index_follows_new_moved_and_deleted_objects() -> None:
    index = ModelIndex()
    for one in (pod("a", "qwen"), pod("b", "qwen"), pod("a", "qwen", "other")):
        index.apply(WatchEvent(WatchEventType.ADDED, one))
    assert [one["metadata"]["name"] for one in index.of_model("chat/qwen")] == ["a", "b"]
    index.apply(WatchEvent(WatchEventType.MODIFIED, pod("a", "llama")))
    index.apply(WatchEvent(WatchEventType.DELETED, pod("b", "qwen")))
    assert {key: len(found) for key, found in index.by_model().items()} == {"chat/llama": 1, "other/qwen": 1}
    assert index.of_model("chat/qwen") == ()
    index.apply(WatchEvent(WatchEventType.DELETED, pod("never", "qwen")))


class CountedPods(dict[str, Any]):
    """A pod that counts how often it is read."""

    reads = 0

    def __getitem__(self, key: str) -> Any:
        type(self).reads += 1
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        type(self).reads += 1
        return super().get(key, default)


def test_look_up_of_a_model_reads_no_object_of_another_model() -> None:
    index = ModelIndex()
    for number in range(1_000):
        index.apply(WatchEvent(WatchEventType.ADDED, CountedPods(pod(f"p{number}", f"m{number}"))))
    CountedPods.reads = 0
    assert len(index.of_model("chat/m7")) == 1
    assert CountedPods.reads == 0
