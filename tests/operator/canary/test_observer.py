"""Reports of gateways on both revisions, and the judgements made of them."""

import asyncio
from typing import Any

import msgspec
import pytest

from fairlead.errors import FairleadError, Unavailable
from fairlead.kube.resources import MODEL_DEPLOYMENTS, Manifest
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead.runtime.clock import ManualClock, Pacing
from fairlead_operator.canary.judge import Measure, Verdict
from fairlead_operator.canary.observer import SETTLE_SECONDS, CanaryObserver
from fairlead_operator.canary.progress import parse_state
from fairlead_operator.kube.object_cache import ObjectCache
from fairlead_testing.kube.manifests import manifest

KEY = "chat/qwen"
MANY = "{" + ",".join(f'"old/{number}":{{}}' for number in range(8_193)) + "}"
CANARY = {
    "revision": 2,
    "hash": "h2",
    "phase": "Observing",
    "step": 0,
    "weight": 10,
    "since": "2026-01-01T00:00:00Z",
    "reason": "Observing",
    "message": "",
}


def model(**canary: Any) -> Manifest:
    rollout = {"canary": {"steps": [10], "observe": "10m"}}
    spec = {"model": {"uri": "hf://a/b"}, "pools": [{"name": "main"}], "rollout": rollout}
    metadata, status = {"uid": "m", "resourceVersion": "1"}, {"canary": {**CANARY, **canary}}
    return manifest(MODEL_DEPLOYMENTS, "qwen", "chat", metadata, spec=spec, status=status)


def pod(uid: str, pool: str) -> Manifest:
    labels = {
        "app.kubernetes.io/managed-by": "fairlead",
        "fairlead.io/model": "qwen",
        "fairlead.io/pool": pool,
        "fairlead.io/endpoint": "true",
    }
    metadata = {"name": uid, "namespace": "chat", "uid": uid, "labels": labels, "resourceVersion": "1"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": {}}


class Gateways:
    """Gateways whose engines answer 9 : 1 requests between two reads."""

    def __init__(self) -> None:
        self.totals: dict[str, dict[str, dict[str, float]]] = {}
        self.failing: set[str] = set()

    def serve(self, gateway: str, pod: str, requests: int, *, tpot: float = 0.02, errors: int = 0) -> None:
        totals = self.totals.setdefault(gateway, {}).setdefault(f"{pod}/8000/0", {})
        noise = 1.0 + 0.01 * (requests % 3 - 1)
        for name, more in {
            "attempts": requests,
            "errors": errors,
            "first_tokens": requests,
            "ttft_seconds": 0.2 * requests * noise,
            "gaps": 100 * requests,
            "gap_seconds": 100 * requests * tpot * noise,
            "answers": requests,
            "log_tokens": 4.6 * requests,
            "computed_tokens": 500 * requests,
        }.items():
            totals[name] = totals.get(name, 0) + more

    async def fetch_all(self, path: str) -> dict[str, bytes | FairleadError]:
        assert path == "/api/stats"
        return {
            name: Unavailable("it does not answer")
            if name in self.failing
            else msgspec.json.encode(
                {"models": {KEY: {"instances": {instance: {"totals": totals} for instance, totals in served.items()}}}}
            )
            for name, served in self.totals.items()
        }


class Round:
    """An observer, its gateways and its clock."""

    def __init__(self, **canary: Any) -> None:
        self.clock, self.gateways, self.keys = ManualClock(), Gateways(), list[str]()
        self.cache = ObjectCache()
        self.cache.replace_models([model(**canary)])
        for added in (pod("old", "main"), pod("new", "main.canary")):
            self.cache.apply(WatchEvent(WatchEventType.ADDED, added))
        self.observer = CanaryObserver(self.cache, self.gateways, Pacing(self.clock, lambda: 0.5), self.keys.append)

    def run(self, rounds: int, *, tpot: float = 0.02, errors: int = 0) -> None:
        for number in range(rounds):
            for gateway in ("gateway-0", "gateway-1"):
                self.gateways.serve(gateway, "old", 60 + number % 5)
                self.gateways.serve(gateway, "new", 6 + number % 4, tpot=tpot, errors=errors)
            self.clock.advance(15.0)
            asyncio.run(self.observer.run_once())

    def verdict(self) -> tuple[Verdict, Measure | None]:
        state = parse_state(self.cache.models[KEY]["status"])
        judgement = self.observer.judgement(KEY, state)
        assert judgement is not None
        return judgement.verdict, judgement.missed


def test_a_slow_canary_is_found_over_several_gateways() -> None:
    here = Round()
    here.run(20, tpot=0.026)
    assert here.verdict() == (Verdict.ROLLBACK, Measure.TPOT)
    assert set(here.keys) == {KEY}


def test_a_healthy_one_is_promoted_after_its_time_and_not_before() -> None:
    here = Round()
    here.run(30)
    assert here.verdict() == (Verdict.CONTINUE, None)
    here.run(12)
    assert here.verdict() == (Verdict.PROMOTE, None)


def test_what_happens_while_a_step_settles_does_not_count() -> None:
    here = Round()
    here.run(int(SETTLE_SECONDS / 15.0), tpot=0.2)
    here.run(20)
    assert here.verdict() == (Verdict.CONTINUE, None)


def test_a_gateway_that_starts_anew_takes_nothing_back() -> None:
    here = Round()
    here.run(10)
    here.gateways.totals["gateway-0"] = {}
    here.run(20)
    assert here.verdict() == (Verdict.CONTINUE, None)


def test_a_gateway_that_does_not_answer_is_missing() -> None:
    here = Round()
    here.run(6)
    here.gateways.failing.add("gateway-1")
    here.run(20, tpot=0.026)
    assert here.verdict() == (Verdict.ROLLBACK, Measure.TPOT)


@pytest.mark.parametrize("phase", ["Starting", "Paused", "Promoted", "RolledBack"])
def test_nothing_is_read_without_a_canary_under_observation(phase: str) -> None:
    here = Round(phase=phase)
    here.run(3)
    assert here.keys == []
    assert here.observer.judgement(KEY, parse_state(model()["status"])) is None


def test_a_judgement_is_about_its_step_only() -> None:
    here = Round()
    here.run(6)
    later = parse_state(model(step=1, since="2026-01-01T01:00:00Z")["status"])
    assert here.observer.judgement(KEY, later) is None


@pytest.mark.parametrize(
    "body", [b'{"models": {"\xff": {}}}', b'{"x":' * 100_000, b"[]", b""], ids=["utf-8", "nesting", "type", "empty"]
)
def test_an_answer_that_cannot_be_read_is_missing(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error would end the operator."""
    here = Round()
    here.run(6)
    fetch_all = here.gateways.fetch_all

    async def spoil(path: str) -> dict[str, bytes | FairleadError]:
        return {**await fetch_all(path), "gateway-1": body}

    monkeypatch.setattr(here.gateways, "fetch_all", spoil)
    here.run(20, tpot=0.026)
    assert here.verdict() == (Verdict.ROLLBACK, Measure.TPOT)


@pytest.mark.parametrize(
    ("members", "reason"),
    [(",".join(['"m":{}'] * 300_000), "objects"), (f'"m":{{"instances":{MANY}}}', "instances")],
    ids=["objects", "instances"],
)
def test_an_answer_with_more_than_a_fleet_is_missing(
    members: str, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = Round()

    async def fetch_all(path: str) -> dict[str, bytes | FairleadError]:
        return {"gateway-1": b'{"models":{%s}}' % members.encode()}

    monkeypatch.setattr(here.gateways, "fetch_all", fetch_all)
    here.run(1)
    assert "gateway-1 is missing from the judgement on canaries: its answer has more than" in caplog.text
    assert reason in caplog.text


def test_instances_that_a_gateway_names_once_are_not_kept() -> None:
    """A gateway in an attacker's hands can invent others in each report."""
    here = Round()
    for number in range(5):
        here.gateways.totals["gateway-0"] = {f"old/{number}/{rank}": {"attempts": 1} for rank in range(100)}
        here.run(1)
    (record,) = here.observer._records.values()
    assert len(record._latest) == 104


def test_a_gateway_that_starts_anew_has_no_errors_less_than_none() -> None:
    """It has more requests than before, and fewer errors."""
    here = Round()
    here.run(1)
    for totals in here.gateways.totals.values():
        totals["old/8000/0"]["errors"] = 5_000
    here.run(int(SETTLE_SECONDS / 15.0))
    for totals in here.gateways.totals.values():
        totals["old/8000/0"]["errors"] = 0
    here.run(20)
    assert here.verdict()[0] is Verdict.CONTINUE


@pytest.mark.parametrize(
    "more", [{"log_tokens": 1e308}, {"errors": 1 << 62}, {"ttft_seconds": 1e300}, {"gaps": -(1 << 40)}]
)
def test_impossible_numbers_of_a_gateway_are_left_out(more: dict[str, float]) -> None:
    """An error would end the operator."""
    here = Round()
    here.run(int(SETTLE_SECONDS / 15.0) + 2)
    for _ in range(6):
        totals = here.gateways.totals["gateway-0"]["new/8000/0"]
        for name, amount in more.items():
            totals[name] = amount - totals[name]  # another number each time
        here.run(1)
    assert here.verdict() == (Verdict.CONTINUE, None)


def test_settings_of_a_later_release_are_not_judged() -> None:
    """The model is stalled. An error would end the operator, for all models."""
    here = Round()
    later = model()
    later["metadata"]["resourceVersion"] = "2"
    later["spec"]["rollout"]["canary"]["unknownField"] = 1
    here.cache.apply(WatchEvent(WatchEventType.MODIFIED, later))
    here.run(3)
    assert here.keys == []
