"""The next step of an informer, and its copy after lists and events: pure functions."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.kube.errors import Forbidden, Gone, Invalid, KubeError, NotFound, TooManyRequests, Unreachable
from fairlead.kube.informer import (
    KUBE_RELIST_SPREAD_SECONDS,
    InformerAction,
    WatchEnd,
    step_after_list,
    step_after_watch,
)
from fairlead.kube.resources import Manifest, key_of
from fairlead.kube.store import ObjectStore
from fairlead.kube.watch_events import WatchEvent, WatchEventType, parse_watch_event
from fairlead.limits import Limits

LIMITS = Limits()


@pytest.mark.parametrize(
    ("end", "failures", "action", "pause_seconds", "words"),
    [
        (WatchEnd(received=True), 0, InformerAction.RESUME, 0.0, "ended the watch"),
        (WatchEnd(), 1, InformerAction.RESUME, 0.1, "ended the watch"),
        (WatchEnd(silent=True, received=True), 0, InformerAction.RESUME, 0.0, "for 90 s"),
        (WatchEnd(silent=True), 1, InformerAction.RESUME, 0.0, "for 90 s"),
        (WatchEnd(silent=True), 2, InformerAction.RELIST, 0.0, "stay silent"),
        (WatchEnd(Gone("old"), received=True), 0, InformerAction.RELIST, 0.0, "no longer has our version"),
        (WatchEnd(Gone("old")), 3, InformerAction.RELIST, 0.4, "no longer has our version"),
        (WatchEnd(Unreachable("reset"), received=True), 0, InformerAction.RESUME, 0.0, "reset"),
        (WatchEnd(Unreachable("refused")), 50, InformerAction.RESUME, 2.5, "refused"),
        (WatchEnd(Unreachable("away", status=503)), 2, InformerAction.RESUME, 0.2, "away"),
        (
            WatchEnd(Unreachable("too large resource version", status=504)),
            3,
            InformerAction.RELIST,
            0.4,
            "refused 3 times",
        ),
        (WatchEnd(TooManyRequests("later", status=429)), 50, InformerAction.RESUME, 2.5, "later"),
        (WatchEnd(TooManyRequests("later", retry_after_seconds=7.0)), 1, InformerAction.RESUME, 7.1, "later"),
        (WatchEnd(TooManyRequests("later", retry_after_seconds=1e9)), 1, InformerAction.RESUME, 30.1, "later"),
        (WatchEnd(Forbidden("no")), 1, InformerAction.RELIST, 0.1, "does not allow this watch"),
        (WatchEnd(NotFound("no such kind")), 1, InformerAction.RELIST, 0.1, "does not allow this watch"),
        (WatchEnd(Invalid("bad version")), 1, InformerAction.RELIST, 0.1, "does not allow this watch"),
    ],
)
def test_step_after_watch(
    end: WatchEnd, failures: int, action: InformerAction, pause_seconds: float, words: str
) -> None:
    then = step_after_watch(end, failures, 0.0, LIMITS)
    assert (then.action, then.pause_seconds) == (action, pytest.approx(pause_seconds))
    assert words in then.reason


def test_relists_are_spread_over_time() -> None:
    pauses = {
        step_after_watch(WatchEnd(Gone("old"), received=True), 0, chance / 10, LIMITS).pause_seconds
        for chance in range(10)
    }
    assert len(pauses) == 10
    assert max(pauses) < KUBE_RELIST_SPREAD_SECONDS


@pytest.mark.parametrize("error", [Unreachable("away"), Forbidden("no"), TooManyRequests("m", retry_after_seconds=3.0)])
def test_failed_list_is_retried_less_and_less_often(error: KubeError) -> None:
    asked = error.retry_after_seconds or 0.0
    pauses = [step_after_list(error, failures, 1.0, LIMITS).pause_seconds for failures in (1, 2, 100)]
    assert pauses == pytest.approx([asked + 0.2, asked + 0.4, asked + 5.0])


def item(name: str, version: int, uid: str = "u") -> Manifest:
    return {"metadata": {"name": name, "namespace": "x", "uid": uid, "resourceVersion": str(version)}}


def event_rows(changes: Any) -> list[tuple[str, str, str]]:
    return [
        (str(change.type), change.object["metadata"]["name"], change.object["metadata"]["uid"]) for change in changes
    ]


def test_list_reports_only_differences() -> None:
    cache = ObjectStore()
    assert event_rows(cache.replace([item("a", 1), item("b", 2)])) == [("ADDED", "a", "u"), ("ADDED", "b", "u")]
    assert event_rows(cache.replace([item("a", 1), item("c", 4)])) == [("DELETED", "b", "u"), ("ADDED", "c", "u")]
    assert event_rows(cache.replace([item("a", 5), item("c", 4)])) == [("MODIFIED", "a", "u")]
    assert list(cache.items) == ["x/a", "x/c"]


def test_recreated_object_is_another_object() -> None:
    cache = ObjectStore()
    list(cache.replace([item("a", 1, "old")]))
    assert event_rows(cache.replace([item("a", 9, "new")])) == [("DELETED", "a", "old"), ("ADDED", "a", "new")]
    renewed = WatchEvent(WatchEventType.MODIFIED, item("a", 12, "newer"))
    assert event_rows(cache.apply(renewed)) == [("DELETED", "a", "new"), ("ADDED", "a", "newer")]


def test_known_version_is_no_event() -> None:
    cache = ObjectStore()
    list(cache.replace([item("a", 1)]))
    assert event_rows(cache.apply(WatchEvent(WatchEventType.ADDED, item("a", 1)))) == []
    assert event_rows(cache.apply(WatchEvent(WatchEventType.ADDED, item("a", 2)))) == [("MODIFIED", "a", "u")]
    assert event_rows(cache.apply(WatchEvent(WatchEventType.DELETED, item("a", 3)))) == [("DELETED", "a", "u")]
    assert event_rows(cache.apply(WatchEvent(WatchEventType.DELETED, item("a", 3)))) == []


def test_managed_fields_are_dropped() -> None:
    cache = ObjectStore()
    manifest = item("a", 1)
    manifest["metadata"]["managedFields"] = [{"manager": "m"}]
    list(cache.replace([manifest]))
    assert "managedFields" not in cache.items["x/a"]["metadata"]


states = st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 3), st.sampled_from(["u", "v"])))


@given(st.lists(states, max_size=5))
def test_event_follower_has_the_same_objects_as_a_list(history: list[dict[str, tuple[int, str]]]) -> None:
    cache, followed = ObjectStore(), dict[str, Manifest]()
    for state in history:
        listed = [item(name, version, uid) for name, (version, uid) in state.items()]
        for change in cache.replace(listed):
            key = key_of(change.object)
            assert (change.type is WatchEventType.ADDED) == (key not in followed)
            if change.type is WatchEventType.DELETED:
                del followed[key]
            else:
                followed[key] = change.object
        assert followed == cache.items == {key_of(manifest): manifest for manifest in listed}


def test_known_version_is_not_decoded_again() -> None:
    metadata = {"name": "m", "namespace": "x", "uid": "u", "resourceVersion": "7", "labels": {"a": "b"}}
    whole: Manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "1"}}
    asked: list[Manifest] = []

    def known(named: Manifest) -> Manifest | None:
        asked.append(named)
        return whole if named["metadata"]["resourceVersion"] == "7" else None

    def line(kind: str, version: str) -> bytes:
        return json.dumps(
            {"type": kind, "object": {**whole, "metadata": {**metadata, "resourceVersion": version}}}
        ).encode()

    same = parse_watch_event(line("MODIFIED", "7"), "a test", known)
    assert (same.type, same.object is whole) == (WatchEventType.MODIFIED, True)
    assert asked == [{"kind": "ConfigMap", "metadata": metadata}]
    newer = parse_watch_event(line("MODIFIED", "8"), "a test", known)
    assert (newer.object["data"], newer.object["metadata"]["resourceVersion"]) == ({"a": "1"}, "8")
    gone = parse_watch_event(line("DELETED", "7"), "a test", known)
    assert (gone.type, gone.object is whole, len(asked)) == (WatchEventType.DELETED, False, 2)
    with pytest.raises(Unreachable):
        parse_watch_event(b'{"type": "MODIFIED", "object": {"kind": 3}', "a test", known)
