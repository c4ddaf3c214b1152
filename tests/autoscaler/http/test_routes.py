"""The routes of the autoscaler's port answer as docs/reference/autoscaler.md says, whatever is
asked.
"""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import jsonschema
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fairlead_autoscaler.history.recorder import TickRecord, decode_record
from tests.autoscaler.http.test_server import KEY, running_service

pytestmark = pytest.mark.simulated

PAGE: Final = (Path(__file__).parents[3] / "docs" / "reference" / "autoscaler.md").read_text()
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
EVERY_PATH: Final = {401, 403, 405}
ERROR: Final = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"message": {"type": "string", "minLength": 1}},
            "required": ["message"],
            "additionalProperties": False,
        }
    },
    "required": ["error"],
    "additionalProperties": False,
}


def documented() -> Mapping[str, tuple[str, set[int]]]:
    """Returns the method and the statuses of each path of the page."""
    section = PAGE.partition("\n## Port\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(POST )?(/\w+(?:/\w+)?).*? \| ([\d, ]+) \| (?:yes|no) \|$", section, re.MULTILINE)
    return {path: (method.strip() or "GET", {int(code) for code in codes.split(", ")}) for method, path, codes in rows}


def fields_of(name: str) -> set[str]:
    """Returns the fields in the table of the page after the words `name`."""
    table = PAGE.partition(name)[2].partition("|---|---|\n")[2].partition("\n\n")[0]
    return set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


TEXTS = st.one_of(st.sampled_from([KEY, "default/no", "0", "1e300", "nan", "-5"]), st.text(max_size=20))
HINTS = st.one_of(
    st.binary(max_size=40),
    st.just(b"x" * 5_000),
    st.builds(lambda model: msgspec.json.encode({"model": model}), st.one_of(TEXTS, st.integers(), st.none())),
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "authorization": st.sampled_from(["Bearer right", "Bearer right", "Bearer wrong", "Basic right", "Bearer"]),
        "content-type": st.sampled_from(["application/json", "application/json", "text/plain"]),
        "origin": st.sampled_from(["https://evil.example"]),
    },
)


@pytest.mark.sockets
@pytest.mark.property
async def test_every_request_gets_an_answer_of_the_reference(harness: Any) -> None:
    routes = documented()
    statuses: set[int] = set()

    def draw(url: str) -> None:
        with httpx.Client(base_url=url) as client:

            @settings(deadline=None, suppress_health_check=list(HealthCheck))
            @given(
                st.sampled_from([*routes, "/", "/nowhere", "/autoscaling/"]),
                st.sampled_from([*METHODS, *["GET", "POST"] * 4]),
                st.dictionaries(st.sampled_from(["model", "at", "since", "x"]), TEXTS, max_size=3),
                HINTS,
                HEADERS,
            )
            @example("/nowhere", "GET", {}, b"", {})
            @example("/metrics", "DELETE", {}, b"", {})
            @example("/autoscaling", "GET", {}, b"", {"authorization": "Bearer wrong"})
            @example("/metrics", "GET", {}, b"", {})
            def check(path: str, method: str, query: dict[str, str], body: bytes, headers: Mapping[str, str]) -> None:
                headers = {"authorization": "Bearer right", **headers}
                content = body if method == "POST" else None
                answer = client.request(method, path, params=query, content=content, headers=headers)
                own, codes = routes.get(path, ("", {404}))
                statuses.add(answer.status_code)
                assert answer.status_code in codes | EVERY_PATH
                if answer.status_code == 405:
                    assert set(answer.headers["allow"].split(",")) == ({"POST"} if own == "POST" else {"GET", "HEAD"})
                if answer.status_code not in {200, 503} and method != "HEAD":
                    assert answer.headers["content-type"].startswith("application/json")
                    jsonschema.validate(answer.json(), ERROR)
                if answer.status_code == 401:
                    assert answer.headers["www-authenticate"] == "Bearer"

            check()

    async with running_service(harness, token="right", seconds=3_600.0) as (client, _):
        await asyncio.to_thread(draw, str(client.base_url))
    assert statuses >= {200, 401, 404, 405}


async def test_status_and_records_have_the_fields_of_the_reference(harness: Any) -> None:
    async with running_service(harness) as (client, _):
        status = await client.get("/autoscaling")
        assert status.headers["content-type"].startswith("application/json")
        assert set(status.json()) == fields_of("**`/autoscaling`**")
        record = status.json()["models"][KEY]
        assert set(record) == fields_of("**A record**") == set(TickRecord.__dataclass_fields__)
        assert isinstance(decode_record(msgspec.json.encode(record)), TickRecord)
        recording = await client.get("/autoscaling/recording")
        assert recording.headers["content-type"] == "application/jsonl"
        assert [set(msgspec.json.decode(line)) for line in recording.content.splitlines()] == [set(record)]
        assert (await client.post("/wake", json={"model": KEY})).json() == {}


async def test_the_recording_has_no_body_for_head(harness: Any) -> None:
    async with running_service(harness) as (client, _):
        assert (await client.get("/autoscaling/recording")).content
        for _ in range(2):  # the second answer on the connection shows what follows the first
            answer = await client.head("/autoscaling/recording")
            assert (answer.status_code, answer.content) == (200, b"")
        assert (await client.get("/autoscaling")).status_code == 200


async def test_a_body_that_is_too_long_gets_an_error_of_the_same_shape(harness: Any) -> None:
    async with running_service(harness) as (client, _):
        answer = await client.post("/wake", content=b"x" * 9_000, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        jsonschema.validate(answer.json(), ERROR)
        assert "4,096 bytes" in answer.json()["error"]["message"]
