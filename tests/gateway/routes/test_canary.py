"""A canary at a gateway: which conversations it gets, and where they go when it is gone."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from math import log
from typing import Any

import pytest

from fairlead.fleet.model import Fleet, InstanceState
from fairlead_gateway.telemetry import counters as at
from fairlead_testing.engines.scripted import responds, scripted_engine
from fairlead_testing.gateway.running_gateway import RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import request

pytestmark = pytest.mark.simulated

RUNNING, CANARY = "running", "canary"


def answering(name: str) -> Any:
    return responds({"model": "m", "choices": [{"message": {"content": name}}], "usage": usage()})


def usage() -> dict[str, int]:
    return {"prompt_tokens": 4, "completion_tokens": 8, "total_tokens": 12}


def fleet_with(urls: Sequence[str], weight: int, *, state: InstanceState = InstanceState.READY) -> Fleet:
    """Returns a fleet of a running instance and a canary, in this order."""
    base = fleet_of(urls)
    ((key, instances),) = base.instances.items()
    canary = replace(instances[1], pool=f"{instances[1].pool}.canary", state=state)
    models = {key: replace(base.models[key], canary_weight=weight)}
    return replace(base, models=models, instances={key: (instances[0], canary)})


@asynccontextmanager
async def split(weight: int, **more: Any) -> AsyncIterator[RunningGateway]:
    async with (
        scripted_engine(answering(RUNNING)) as running,
        scripted_engine(answering(CANARY)) as canary,
        running_gateway(fleet_with([running.url, canary.url], weight, **more)) as gateway,
    ):
        yield gateway


async def revision(gateway: RunningGateway, text: str, *turns: str) -> str:
    """Returns the revision that answers a conversation."""
    messages = [{"role": "user", "content": text}]
    for turn in turns:
        messages += [{"role": "assistant", "content": "hi"}, {"role": "user", "content": turn}]
    reply = await request(gateway.url, {"model": "tiny", "messages": messages})
    assert reply.status == 200, reply.body
    return str(reply.json["choices"][0]["message"]["content"])


async def test_a_conversation_stays_with_its_revision() -> None:
    async with split(50) as gateway:
        seen = set()
        for number in range(16):
            first = await revision(gateway, f"{number}")
            seen.add(first)
            assert await revision(gateway, f"{number}", "And?") == first
            assert await revision(gateway, f"{number}", "And?", "x" * 300_000) == first
        assert seen == {RUNNING, CANARY}


@pytest.mark.parametrize(("weight", "expected"), [(0, {RUNNING}), (100, {CANARY})])
async def test_a_weight_of_nothing_or_everything(weight: int, expected: set[str]) -> None:
    async with split(weight) as gateway:
        assert {await revision(gateway, f"{number}") for number in range(8)} == expected


async def test_a_canary_that_is_not_ready_gets_nothing() -> None:
    async with split(100, state=InstanceState.STARTING) as gateway:
        assert {await revision(gateway, f"{number}") for number in range(4)} == {RUNNING}


async def test_instances_have_totals_by_which_revisions_are_compared() -> None:
    async with split(100) as gateway:
        for number in range(3):
            await revision(gateway, f"{number}")
        (series,) = gateway.gateway.telemetry.models["default/tiny"].instances.values()
        assert (series.ints[at.I_ROUTED], series.ints[at.I_ANSWERS]) == (3, 3)
        assert series.sums[at.I_LOG_TOKENS_SUM] == pytest.approx(3 * log(8), abs=1e-4)
