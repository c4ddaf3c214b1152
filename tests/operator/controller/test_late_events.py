"""Changes that the operator meets in the answer to its own write, before their event."""

from typing import Any

import pytest

from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead_testing.kube.operator_harness import OperatorHarness, model_manifest


def serve_model(harness: OperatorHarness, **spec: Any) -> None:
    harness.kube.put(model_manifest(**spec))
    harness.run_until_idle()


@pytest.mark.parametrize("change", ["edited", "deleted"])
def test_change_that_a_response_shows_first_reaches_the_other_models(harness: OperatorHarness, change: str) -> None:
    """The event of that change comes later, and is not new."""
    for name in ("qwen", "second"):
        serve_model(harness, name=name, model={"uri": "hf://a/b", "servedNames": ["chat"]})
    assert harness.conditions(name="second")["NameTaken"] == ("True", "ServedNameTaken")
    harness.drops_events = True
    if change == "edited":
        harness.kube.put(model_manifest(model={"uri": "hf://a/b", "servedNames": []}), "kubectl")
        harness.cache.apply(WatchEvent(WatchEventType.DELETED, harness.kube.objects_of("Service")[0]))
    else:
        named = model_manifest()
        named["metadata"]["annotations"] = {"fairlead.io/release-names": "true"}
        harness.cache.apply(WatchEvent(WatchEventType.MODIFIED, harness.kube.put(named, "kubectl")))
        harness.kube.remove("ModelDeployment", "chat", "qwen")
        harness.cache.apply(WatchEvent(WatchEventType.DELETED, harness.kube.objects_of("Service")[0]))
    harness.keys = []
    assert harness.reconcile() in (0.0, 1.0)
    assert harness.keys == ["chat/second"]
    harness.run_until_idle()
    assert "NameTaken" not in harness.conditions(name="second")


def test_annotation_that_the_operator_does_not_keep_is_no_news(harness: OperatorHarness) -> None:
    applied = model_manifest()
    applied["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    harness.kube.put(applied, "kubectl")
    harness.drops_events = True
    assert harness.reconcile() is None
