"""Streams that go on by replay: grammars, stop strings, penalties and log probabilities, cut at
places that a seed draws.

The same proxies as in `continued` cut the streams of one engine with random weights, in whole
precision. Greedy and seeded streams must be those without a cut. Streams with a seed of the
gateway's own have no twin: they must end whole, and with a schema fit it.

An engine may compute a token otherwise in another batch. Then a replay differs, and the stream must
end with that reason. Such streams are counted; nothing wrong may reach a client.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Any, Final

from e2e.vllm.engine.engine_processes import EngineStage
from e2e.vllm.report import Numbers, VllmReport, require
from e2e.vllm.scenarios.continued import (
    CutFleet,
    Said,
    StreamRequest,
    chat,
    completion,
    prompts,
    start_random,
)

NAME: Final = "continued-replays"
SEED: Final = 24
CUTS: Final = 4
"""Limit: cuts of each of 15 streams."""
MAX_DIFFERING: Final = 0.05
TOKENS: Final = 32
_DIFFERS: Final = "(replay-differs)"
SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "days": {"type": "integer", "enum": [7, 12, 30]},
        "note": {"type": "string", "maxLength": 12},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["days", "note", "unit"],
    "additionalProperties": False,
}
_FORMAT: Final = {"type": "json_schema", "json_schema": {"name": "report", "schema": SCHEMA}}


def requests_of(draw: Random) -> list[StreamRequest]:
    """Greedy requests, one of each kind that needs a replay."""
    schema, regex, stop, penalties, logprobs = prompts(draw, 5)
    return [
        chat(schema, 80, response_format=_FORMAT),
        completion(regex, TOKENS, structured_outputs={"regex": "[a-z]{20,40}"}),
        chat(stop, TOKENS, stop=["zqxzqx", "e q"], ignore_eos=True),
        chat(penalties, TOKENS, frequency_penalty=0.5, presence_penalty=0.5, ignore_eos=True),
        completion(logprobs, TOKENS, logprobs=1, ignore_eos=True),
    ]


class Replayed:
    """The engine, a gateway before it, and the checks."""

    def __init__(self, stage: EngineStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report

    async def run(self) -> None:
        """Everything, in order; the engine is gone afterwards."""
        engine = start_random(self._stage, "replayed")
        try:
            await asyncio.to_thread(engine.await_health)
            async with CutFleet.before(self._stage, engine.url) as fleet:
                draw = Random(SEED)
                check = self._report.check
                await check("greedy streams, replayed", lambda: compare_with_whole(fleet, requests_of(draw), draw))
                seeded = [_sampled(one, seed=SEED) for one in requests_of(draw)]
                await check("streams with the client's seed, replayed", lambda: compare_with_whole(fleet, seeded, draw))
                free = [_sampled(one) for one in requests_of(draw)]
                await check("streams with the gateway's seed, replayed", lambda: check_whole(fleet, free, draw))
        finally:
            engine.kill()


def _sampled(one: StreamRequest, **more: object) -> StreamRequest:
    return StreamRequest(one.path, {**one.body, "temperature": 1, **more})


async def compare_with_whole(fleet: CutFleet, asks: list[StreamRequest], draw: Random) -> Numbers:
    """Cuts streams, and compares each with the same one without a cut."""
    counts, first = Counter[str](), list[str]()
    async with fleet.client() as client:
        wholes = await asyncio.gather(*(fleet.send(client, asked) for asked in asks))
        pairs = [(asked, whole, cut) for asked, whole in zip(asks, wholes, strict=True) for cut in _places(draw, whole)]
        cuts = await asyncio.gather(*(fleet.send(client, asked, cut) for asked, _, cut in pairs))
    for (_, whole, cut), got in zip(pairs, cuts, strict=True):
        _count(counts, got)
        is_same = not got.error and got.same() == whole.same()
        counts["identical"] += is_same
        if not is_same and not (_DIFFERS in got.error and whole.text.startswith(got.text)):
            first.append(f"at {cut}: {whole.same()} then {got.error or got.same()}"[:600])
    return _judge(counts, first)


async def check_whole(fleet: CutFleet, asks: list[StreamRequest], draw: Random) -> Numbers:
    """Cuts streams whose seed the gateway draws; what is whole must be valid."""
    counts, first = Counter[str](), list[str]()
    async with fleet.client() as client:
        wholes = await asyncio.gather(*(fleet.send(client, asked) for asked in asks))
        pairs = [(asked, cut) for asked, whole in zip(asks, wholes, strict=True) for cut in _places(draw, whole)]
        cuts = await asyncio.gather(*(fleet.send(client, asked, cut) for asked, cut in pairs))
    for (asked, cut), got in zip(pairs, cuts, strict=True):
        _count(counts, got)
        counts["whole"] += got.is_whole
        if not (_DIFFERS in got.error if got.error else _fits(asked, got)):
            first.append(f"at {cut}: {got.error or got.same()}"[:600])
    return _judge(counts, first)


def _places(draw: Random, whole: Said) -> list[int]:
    require(whole.is_whole and whole.usage is not None, "a stream without a cut is not whole", {"error": whole.error})
    assert whole.usage is not None
    places = range(2, whole.usage[1])
    return sorted(draw.sample(places, min(CUTS, len(places))))


def _count(counts: Counter[str], got: Said) -> None:
    counts["streams"] += 1
    counts["replayed_elsewhere"] += bool(got.continued_at)
    counts["differ_and_say_so"] += _DIFFERS in got.error


def _fits(asked: StreamRequest, got: Said) -> bool:
    """Whether a whole stream has what its request asks for, and its usage counts it once."""
    if not got.is_whole or got.usage is None:
        return False
    if "response_format" in asked.body and got.finish == "stop":
        value = json.loads(got.text, strict=False)  # the engine lets control characters into strings
        return set(value) == {"days", "note", "unit"} and value["days"] in (7, 12, 30) and value["unit"] in ("C", "F")
    return got.usage[1] <= int(asked.body["max_tokens"])


def _judge(counts: Counter[str], first: list[str]) -> Numbers:
    numbers: Numbers = {**counts, "first": first[:5]}
    require(not first, "streams are not those without a cut", numbers)
    require(counts["replayed_elsewhere"], "nothing was replayed", numbers)
    few = counts["differ_and_say_so"] <= MAX_DIFFERING * counts["streams"]
    require(few, "many replays differ", numbers)
    return numbers
