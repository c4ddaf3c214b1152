"""The client of sleep mode: the order of its requests, and the replies that it accepts."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from fairlead.api.v1alpha1 import ModelDeploymentSpec
from fairlead.engine_profile import builtin_profile
from fairlead.engines.adapter_protocol import LocalEngineReplica
from fairlead.engines.registry import engine_adapter
from fairlead.engines.sleep_mode import EngineSleepClient
from fairlead.errors import Unavailable
from fairlead.runtime.http_client import HttpReply

URL = "http://10.0.0.1:8000"


class FakeEngine:
    """Sleeps like vLLM: it is awake when the last part is back.

    answers: statuses by path; 200 by default.
    """

    def __init__(self, answers: Mapping[str, int] | None = None, *, deaf: bool = False) -> None:
        self.answers = answers or {}
        self.deaf = deaf
        self.gone: set[str] = set()
        self.hollow = False
        self.said: list[str] = []

    async def __call__(self, method: str, url: str, body: bytes | None, seconds: float) -> HttpReply:
        path = url.removeprefix(URL)
        self.said.append(f"{method} {path}")
        status = self.answers.get(path.partition("?")[0], 200)
        if status != 200:
            return HttpReply(status, b"{}")
        if path.startswith("/sleep") and not self.deaf:
            self.gone = {"weights", "kv_cache"}
            self.hollow = "level=2" in path
        elif path.startswith("/wake_up") and not self.deaf:
            self.gone -= {path.partition("tags=")[2]} if "tags=" in path else set(self.gone)
        elif path == "/collective_rpc":
            assert body is not None
            assert json.loads(body) == {"method": "reload_weights"}
            assert "weights" not in self.gone, "there is memory to load them into"
            self.hollow = False
        return HttpReply(200, json.dumps({"is_sleeping": bool(self.gone)}).encode())


def sleep_client(engine: FakeEngine) -> EngineSleepClient:
    return EngineSleepClient(engine)


@pytest.mark.parametrize("level", [1, 2])
def test_sleep_and_wake_return_when_the_engine_confirms(level: int) -> None:
    engine = FakeEngine()
    bed = sleep_client(engine)
    asyncio.run(bed.sleep(URL, level))
    assert engine.said == [f"POST /sleep?level={level}&mode=wait", "GET /is_sleeping"]
    assert asyncio.run(bed.is_sleeping(URL))
    asyncio.run(bed.wake(URL, level))
    assert not engine.gone
    assert not engine.hollow
    assert engine.said[-1] == "GET /health"


def test_half_awake_engine_is_woken_completely() -> None:
    engine = FakeEngine()
    bed = sleep_client(engine)
    asyncio.run(bed.sleep(URL, 2))
    engine.gone = {"kv_cache"}  # the former caller died after the first step
    assert asyncio.run(bed.is_sleeping(URL))
    asyncio.run(bed.wake(URL, 2))
    assert not engine.hollow
    assert not asyncio.run(bed.is_sleeping(URL))


@pytest.mark.parametrize(
    ("engine", "verb", "why"),
    [
        (FakeEngine({"/sleep": 404}), "sleep", "the engine answered /sleep?level=1&mode=wait with 404"),
        (FakeEngine(deaf=True), "sleep", "the engine is awake after the sleep request"),
        (FakeEngine({"/is_sleeping": 404}), "sleep", "the engine does not say whether it sleeps"),
        (FakeEngine({"/wake_up": 500}), "wake", "the engine answered /wake_up with 500"),
        (FakeEngine({"/health": 503}), "wake", "the engine is awake but not healthy"),
    ],
)
async def test_engine_that_does_not_comply_is_an_error(engine: FakeEngine, verb: str, why: str) -> None:
    bed = sleep_client(engine)
    with pytest.raises(Unavailable) as error:
        await getattr(bed, verb)(URL, 1)
    assert error.value.message.startswith(why)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"is_sleeping": "no"}', b"[" * 60_000])
async def test_invalid_sleep_state_is_an_error(body: bytes) -> None:
    async def send(method: str, url: str, sent: bytes | None, seconds: float) -> HttpReply:
        return HttpReply(200, body)

    with pytest.raises(Unavailable, match="does not say whether it sleeps"):
        await EngineSleepClient(send).is_sleeping(URL)


def test_engines_start_with_sleep_mode_if_the_model_may_sleep() -> None:
    replica = LocalEngineReplica("tiny", "hf://org/tiny", builtin_profile("tiny-cpu"), env={"A": "1"}, sleeps=True)
    launch = engine_adapter("vllm").local_launch_command(replica, (8000,))
    assert "--enable-sleep-mode" in launch.command
    assert launch.env == {"A": "1", "VLLM_SERVER_DEV_MODE": "1"}
    plain = engine_adapter("vllm").local_launch_command(
        LocalEngineReplica("tiny", "hf://org/tiny", builtin_profile("tiny-cpu")), (8000,)
    )
    assert "--enable-sleep-mode" not in plain.command
    assert plain.env == {}


def test_sleeping_model_must_state_how_many() -> None:
    given: dict[str, Any] = {"model": {"uri": "hf://org/tiny"}, "pools": [{"acceleratorClassName": "nvidia-l4"}]}
    assert not ModelDeploymentSpec.model_validate(given).can_sleep
    spec = ModelDeploymentSpec.model_validate({**given, "autoscaling": {"sleep": {"max": 2}}})
    assert spec.can_sleep
    sleep = spec.autoscaling.sleep
    assert sleep is not None
    assert (sleep.min, sleep.max, sleep.level, sleep.after) == (0, 2, 1, None)
