"""All forms that a standard allows mean the same: of events, of content types and of waits.

The forms are drawn with a fixed seed, so each run tries the same ones.
"""

import itertools
import random
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from fairlead.fleet.model import EXTERNAL_API, Fleet, Instance, Model, RequestPolicy
from fairlead_gateway.upstream.request_encoder import retry_after_of
from fairlead_testing.engines.scripted import (
    NAMED_STREAMS,
    EngineCall,
    event,
    responds,
    scripted_engine,
    token,
    well_behaved,
)
from fairlead_testing.gateway.running_gateway import GOOD, gateway_before, running_gateway
from fairlead_testing.http.raw_client import RawResponse, request

pytestmark = pytest.mark.simulated

SEED = 20_261_130
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": GOOD | {"stream": True},
    "/v1/messages": GOOD | {"stream": True, "max_tokens": 9},
    "/v1/responses": {"model": "tiny", "input": "hi", "stream": True},
}
STREAMS = NAMED_STREAMS | {
    "/v1/chat/completions": b"".join(event(token(text, "stop" if text == "c" else None)) for text in "abc")
    + event("[DONE]")
}
ENDS = {"/v1/chat/completions": "[DONE]", "/v1/messages": "message_stop", "/v1/responses": "response.completed"}
PING_NAMES = ("ping", "keepalive", "keep-alive", "heartbeat")
PINGS = [
    f"event:{space}{name}{data}\n\n"
    for space in ("", " ")
    for name in PING_NAMES
    for data in (
        *("\ndata: ping", "\ndata:", "\ndata", "\ndata:{"),
        '\ndata: {"type": "ping"}',
        "\ndata: [1]",
        "",
        "\nid: 1",
    )
]
OTHERS = [": \n\n", ":keep-alive\n\n", "retry: 3000\n\n", "id: 7\n\n", "data:\n\n", "\n", "x-own: 1\n\n"]
STREAM_TYPES = [
    "text/event-stream",
    "Text/Event-Stream",
    "text/event-stream; charset=utf-8",
    "text/event-stream;charset=UTF-8",
    'text/event-stream ; charset="utf-8"',
]


def in_some_form(draw: random.Random, stream: bytes) -> list[bytes]:
    """Returns the stream with other line ends, fields, comments and pings, cut somewhere."""
    parts = []
    for one in stream.decode().split("\n\n"):
        if one:
            fields = one.split("\n")
            if draw.random() < 0.3:
                fields = [re.sub("^(data|event): ", r"\1:", field) for field in fields]
            if draw.random() < 0.3:
                fields.insert(draw.randrange(len(fields) + 1), draw.choice(["id: 1", "retry: 1000", ": comment"]))
            if draw.random() < 0.3:
                fields.reverse()
            parts.append("\n".join(fields) + "\n\n")
        if draw.random() < 0.5:
            parts.append(draw.choice(PINGS + OTHERS))
    text = "".join(parts[:-1] if parts[-1] in PINGS + OTHERS else parts)
    data = ("\ufeff" * (draw.random() < 0.3) + text.replace("\n", draw.choice(["\n", "\r\n", "\r"]))).encode()
    cuts = sorted({0, len(data), *(draw.randrange(len(data)) for _ in range(draw.randrange(8)))})
    return [data[start:stop] for start, stop in itertools.pairwise(cuts)]


def read_events(answer: RawResponse) -> list[tuple[str, str]]:
    """Returns the events as a client that follows the standard reads them, without pings."""
    text = re.sub("\r\n?", "\n", answer.body.decode().removeprefix("\ufeff"))
    found = []
    for one in text.split("\n\n"):
        fields = [line.partition(":")[::2] for line in one.split("\n")]
        name, data = (
            "\n".join(value.removeprefix(" ") for key, value in fields if key == wanted) for wanted in ("event", "data")
        )
        if data:
            found.append((name, data))
    return found


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("number", range(40))
async def test_a_stream_in_any_form_of_the_standard_is_whole(path: str, number: int) -> None:
    draw = random.Random(f"{SEED} {path} {number}")
    pieces, kind = in_some_form(draw, STREAMS[path]), draw.choice(STREAM_TYPES)

    async def script(call: EngineCall) -> None:
        await call.start_stream(kind)
        for piece in pieces:
            await call.chunk(piece)
        await call.chunk(b"")

    async with gateway_before([script]) as running:
        answer = await request(running.url, BODIES[path], path=path)
        shown = [one for one in read_events(answer) if one[0] not in PING_NAMES]
        assert answer.complete
        assert shown == read_events(RawResponse(200, {}, [STREAMS[path]])), (pieces, answer.body)


@pytest.mark.parametrize("ping", PINGS)
async def test_clients_of_chats_see_no_ping_as_an_event(ping: str) -> None:
    """SDKs decode the data of each event as a chunk."""

    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await call.chunk(event(token("a")) + ping.encode() + event(token("b", "stop")))
        await call.finish()

    async with gateway_before([script]) as running:
        answer = await request(running.url, BODIES["/v1/chat/completions"])
        assert [data for _, data in read_events(answer)][-1] == "[DONE]"
        assert all(data.startswith(('{"choices"', "[DONE]")) for _, data in read_events(answer)), answer.body


@pytest.mark.parametrize("path", BODIES)
async def test_an_event_may_be_as_long_as_an_image(path: str) -> None:
    image = b"A" * 3_000_000
    first, rest = STREAMS[path].split(b'"a"', 1)

    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await call.chunk(first + b'"' + image + b'"' + rest)
        await call.chunk(b"")

    async with gateway_before([script]) as running:
        answer = await request(running.url, BODIES[path], path=path)
        assert image in answer.body
        assert ENDS[path] in answer.body.decode()[-300:]
        assert running.gateway.runtime.response_memory.used_bytes == 0


# Waits.

NOW = datetime(2026, 11, 30, 12, 0, 0, tzinfo=UTC)


def dates(seconds: int) -> list[str]:
    moment = NOW + timedelta(seconds=seconds)
    return [
        format_datetime(moment, usegmt=True),
        moment.strftime("%A, %d-%b-%y %H:%M:%S GMT"),
        f"{moment:%a %b} {moment.day:2d} {moment:%H:%M:%S %Y}",
    ]


def waits() -> list[tuple[dict[str, str], int | None]]:
    draw = random.Random(SEED)
    found: list[tuple[dict[str, str], int | None]] = [
        *(({"retry-after": value}, 1) for value in ("0", "-3", "0.0", "+1", "1", *dates(-30), *dates(0))),
        *(({"retry-after": value}, 60) for value in ("60.01", "999999999", "9" * 5_000, *dates(86_400))),
        *(
            ({"retry-after": value}, None)
            for value in ("", "soon", "nan", "inf", "1e1", "1\r\nx: y", "Mon", "١", "5 s")
        ),
        ({"retry-after-ms": "4200", "retry-after": "30"}, 5),
        ({"retry-after-ms": "no", "retry-after": "30"}, 30),
        ({"retry-after-ms": "1"}, 1),
    ]
    for _ in range(40):
        seconds = draw.randrange(1, 60)
        found += [({"retry-after": text}, seconds) for text in (str(seconds), f"{seconds - 0.5}", *dates(seconds))]
        found.append(({"retry-after-ms": str(seconds * 1000 - draw.randrange(900))}, seconds))
    return found


def test_a_wait_in_any_form_is_whole_seconds() -> None:
    for fields, expected in waits():
        raw = {name.encode(): value.encode("utf-8") for name, value in fields.items()}
        assert retry_after_of(raw, 60, NOW.timestamp()) == expected, fields
        raw[b"date"] = dates(0)[0].encode()
        assert retry_after_of(raw, 60, 0.0) == expected, "the engine's own clock counts"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("engine", ["vllm", EXTERNAL_API])
@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable", "529 Site is overloaded"])
@pytest.mark.parametrize("stream", [False, True])
async def test_clients_learn_the_wait_of_an_engine(path: str, engine: str, status: str, stream: bool) -> None:
    for name, value in (("retry-after", dates(29)[0]), ("retry-after", "28.5"), ("retry-after-ms", "28001")):
        date = f"date: {dates(0)[0]}\r\n"
        refusing = responds(
            {"error": {"message": "slow down", "type": "x", "code": 1}}, status, more=f"{name}: {value}\r\n{date}"
        )
        async with scripted_engine(refusing) as full:
            policy = RequestPolicy(frozenset({engine}))
            place = Instance("a/0", "default", "tiny", "main", full.url, engine=engine)
            fleet = Fleet(1, 1, {"default/tiny": Model("default", "tiny", requests=policy)}, {"default/tiny": (place,)})
            async with running_gateway(fleet) as running:
                answer = await request(running.url, BODIES[path] | {"stream": stream}, path=path)
                assert answer.status in (429, 503)
                assert answer.fields["retry-after"] == "29"


# Heads of clients.

REQUEST_HEADS = [
    "content-type: Application/JSON\r\n",
    'Content-Type: application/json;charset="UTF-8"\r\n',
    "content-type: application/json ; charset=utf-8\r\nContent-Encoding: Identity\r\n",
    "content-type: application/vnd.api+json\r\naccept: */*;q=0.1\r\n",
    "accept: text/event-stream, application/json\r\nAccept-Encoding: gzip, br\r\ncontent-encoding:\r\n",
    "Accept: text/html\r\nexpect: 100-Continue\r\n",
    "",
]


@pytest.mark.parametrize("head", REQUEST_HEADS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/rerank", "/v1/moderations"])
async def test_a_head_in_any_form_reaches_the_engine(head: str, path: str) -> None:
    async with gateway_before([well_behaved]) as running:
        body = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "x"}], "query": "x"}
        assert (await request(running.url, body, path=path, more=head)).status == 200
