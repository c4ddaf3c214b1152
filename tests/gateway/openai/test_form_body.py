"""Forms with files: engines get the fields and files that the client has sent, and no others."""

import email.parser
import email.policy
import random
from typing import Any

import httpx
import pytest

from fairlead_testing.engines.scripted import EngineCall, scripted_engine
from fairlead_testing.gateway.running_gateway import fleet_of, gateway_of, running_gateway
from fairlead_testing.http.raw_client import RawResponse, request

pytestmark = pytest.mark.simulated

PATH = "/v1/audio/transcriptions"
NAMES = ("language", "prompt", "response_format", "temperature", "timestamp_granularities[]")
TEXTS = ("de", "", "a\r\n--b--\r\n", "0.2", "Grüße ✓", 'say "hi"', "\n\n", "x" * 5_000)
Parts = list[tuple[str, str | None, bytes]]


def parts_of(content_type: str, body: bytes) -> Parts:
    """Returns names, file names and contents of a form, by a parser that is not the gateway's."""
    head = f"content-type: {content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    found: Parts = []
    for part in message.iter_parts():
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        names = dict(part["content-disposition"].params)
        found.append((names["name"], names.get("filename"), content))
    return found


async def send_form(url: str, fields: dict[str, Any], files: Any) -> RawResponse:
    """Sends a form as the SDKs do, by httpx."""
    made = httpx.Request("POST", "http://x", data=fields, files=files)
    body = made.read()
    return await request(url, body, path=PATH, more=f"content-type: {made.headers['content-type']}\r\n")


async def echo(call: EngineCall) -> None:
    await call.respond({"text": "hello"})


@pytest.mark.parametrize("seed", range(12))
async def test_engine_gets_the_fields_and_files_of_the_form(seed: int) -> None:
    rng = random.Random(seed)
    fields = {name: rng.choice(TEXTS) for name in rng.sample(NAMES, rng.randrange(len(NAMES)))}
    if rng.random() < 0.5:
        fields["timestamp_granularities[]"] = ["word", "segment"]  # type: ignore[assignment]
    content = rng.randbytes(rng.choice((0, 10, 400_000)))
    async with gateway_of(echo) as (running, engine):
        answer = await send_form(running.url, {"model": "tiny", **fields}, {"file": ("a b.wav", content, "audio/wav")})
        assert (answer.status, answer.json) == (200, {"text": "hello"})
        (call,) = [call for call in engine.calls if call.path == PATH]
        got = parts_of(call.header("content-type") or "", call.body)
        sent = [
            (name, item) for name, value in fields.items() for item in (value if isinstance(value, list) else [value])
        ]
        assert [(name, text.decode()) for name, file_name, text in got if file_name is None and name != "model"] == sent
        assert [part for part in got if part[1] is not None] == [("file", "a b.wav", content)]


async def test_engine_gets_its_own_name_of_the_model() -> None:
    async with scripted_engine(echo) as engine:
        fleet = fleet_of([engine.url])
        async with running_gateway(fleet) as running:
            answer = await send_form(running.url, {"model": "default/tiny"}, {"file": ("a", b"RIFF")})
            assert answer.status == 200
            (call,) = engine.calls
            assert ("model", None, b"tiny") in parts_of(call.header("content-type") or "", call.body)


PART = b'--b\r\ncontent-disposition: form-data; name="%b"\r\n\r\n%b\r\n'
BAD = {
    "no boundary": ("multipart/form-data", PART % (b"model", b"tiny") + b"--b--\r\n"),
    "another boundary": ("multipart/form-data; boundary=c", PART % (b"model", b"tiny") + b"--b--\r\n"),
    "no end": ("multipart/form-data; boundary=b", PART % (b"model", b"tiny")),
    "a preamble": ("multipart/form-data; boundary=b", b"x\r\n" + PART % (b"model", b"tiny") + b"--b--\r\n"),
    "two models": ("multipart/form-data; boundary=b", PART % (b"model", b"tiny") + PART % (b"model", b"x") + b"--b--"),
    "two names": (
        "multipart/form-data; boundary=b",
        b'--b\r\ncontent-disposition: form-data; name="a"\r\ncontent-disposition: form-data; name="b"\r\n\r\n1\r\n--b--',
    ),
    "no name": ("multipart/form-data; boundary=b", b"--b\r\ncontent-disposition: form-data\r\n\r\n1\r\n--b--"),
    "no UTF-8": ("multipart/form-data; boundary=b", PART % (b"model", b"\xff") + b"--b--"),
    **{
        f"byte {code} in a text": ("multipart/form-data; boundary=b", PART % (b"model", b"tiny%c" % code) + b"--b--")
        for code in range(32)
        if code not in b"\t\n\r"
    },
    **{
        f"byte {code} in a name": ("multipart/form-data; boundary=b", PART % (b"a%c" % code, b"tiny") + b"--b--")
        for code in range(32)
    },
    "a long head": ("multipart/form-data; boundary=b", PART % (b'a"' + b" " * 5_000 + b"x", b"tiny") + b"--b--"),
    "many parts": ("multipart/form-data; boundary=b", PART % (b"a", b"1") * 65 + b"--b--"),
}


@pytest.mark.parametrize("name", BAD)
async def test_odd_form_reaches_no_engine(name: str) -> None:
    kind, body = BAD[name]
    async with gateway_of(echo) as (running, engine):
        answer = await request(running.url, body, path=PATH, more=f"content-type: {kind}\r\n")
        assert answer.status == 400
        assert answer.error["message"]
        assert not engine.calls


@pytest.mark.parametrize("field", ["chat_template", "lora_path", "kv_transfer_params"])
async def test_field_that_no_client_may_set_reaches_no_engine_in_a_form(field: str) -> None:
    async with gateway_of(echo) as (running, engine):
        answer = await send_form(running.url, {"model": "tiny", field: "x"}, {"file": ("a", b"RIFF")})
        seen = [name for call in engine.calls for name, _, _ in parts_of(call.header("content-type") or "", call.body)]
        assert field not in seen
        assert answer.status in (200, 400)
