"""Hand-off fields of clients reach no engine, however they are written; nothing else changes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.worker.openai.kv_transfer_fields import KV_TRANSFER_FIELDS, strip_kv_transfer_fields
from fairlead_testing.engines.scripted import scripted_engine
from fairlead_testing.gateway.running_gateway import fleet_of, run_async, running_gateway
from fairlead_testing.http.raw_client import request

Pairs = list[tuple[str, object]]
NAMES = st.sampled_from(
    [*KV_TRANSFER_FIELDS, "vllm_xargs", "model", "kv_transfer_param", 'kv_transfer_params"', "é", "\\u005f"]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=12)
    | st.sampled_from([*KV_TRANSFER_FIELDS, '{"kv_transfer_params":1}']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
SPACE = st.sampled_from(["", "", " ", "\n\t", "  "])
HAND_OFF = {"do_remote_prefill": True, "remote_engine_id": "x", "remote_block_ids": [1]}


@st.composite
def written(draw: st.DrawFn) -> tuple[str, Pairs]:
    """A JSON object as text, keys in any spelling, repeated too, and its members in order."""
    members: Pairs = draw(st.lists(st.tuples(NAMES | st.text(max_size=6), VALUES), max_size=6))
    parts = []
    for key, value in members:
        name = "".join(
            f"\\u{ord(char):04x}" if char.isascii() and draw(st.booleans()) else json.dumps(char)[1:-1] for char in key
        )
        parts.append(f'{draw(SPACE)}"{name}"{draw(SPACE)}:{draw(SPACE)}{json.dumps(value)}{draw(SPACE)}')
    return f"{draw(SPACE)}{{{','.join(parts) or draw(SPACE)}}}{draw(SPACE)}", members


def remaining(members: Pairs) -> Pairs:
    """Returns the members that should be left, in order."""
    left = [(key, value) for key, value in members if key not in KV_TRANSFER_FIELDS]
    return [
        (key, {k: v for k, v in value.items() if k not in KV_TRANSFER_FIELDS})
        if key == "vllm_xargs" and isinstance(value, dict)
        else (key, value)
        for key, value in left
    ]


@given(written())
def test_the_fields_are_gone_and_all_other_members_stay_in_order(case: tuple[str, Pairs]) -> None:
    text, members = case
    after = strip_kv_transfer_fields(text.encode())
    pairs = json.loads(after, object_pairs_hook=lambda found: found)
    expected = json.loads(json.dumps([value for _, value in remaining(members)]), object_pairs_hook=lambda found: found)
    assert [key for key, _ in pairs] == [key for key, _ in remaining(members)]
    assert [value for _, value in pairs] == expected
    if remaining(members) == members:
        assert after == text.encode()


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\u 0_kvtransfer_params', max_size=60).map(str.encode))
def test_what_is_no_json_is_left_to_the_parser_and_breaks_nothing(body: bytes) -> None:
    strip_kv_transfer_fields(b"{" + body)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ('{"kv_transfer_params":{"a":1},"x":1}', '{"x":1}'),
        ('{"x":1 , "kv_transfer_params" : {"a":[1,"}"]} }', '{"x":1  }'),
        ('{"x":1,"ec_transfer_params":null,"y":2}', '{"x":1,"y":2}'),
        ('{"kv_transfer_params":1,"kv_transfer_params":2}', "{}"),
        ('{"x":1,"kv_transfer_params":1,"ec_transfer_params":2}', '{"x":1}'),
        ('{"kv\\u005ftransfer_params":1,"x":2}', '{"x":2}'),
        ('{"\\u006B\\u0076\\u005F\\u0074ransfer\\u005fparams":1,"x":2}', '{"x":2}'),
        ('{"x":{"kv_transfer_params":1}}', '{"x":{"kv_transfer_params":1}}'),
        ('{"x":"kv_transfer_params"}', '{"x":"kv_transfer_params"}'),
        ('{"vllm_xargs":{"kv_transfer_params":"x","a":1}}', '{"vllm_xargs":{"a":1}}'),
        ('{"kv_cache_report_mode":"full","x":1}', '{"x":1}'),
        ('{"vllm_xargs":{"kv_cache_report_mode":"full","a":1}}', '{"vllm_xargs":{"a":1}}'),
        ('{"vllm\\u005fxargs" : {"ec\\u005ftransfer_params":"x"}}', '{"vllm\\u005fxargs" : {}}'),
    ],
)
def test_byte_for_byte(body: str, left: str) -> None:
    assert strip_kv_transfer_fields(body.encode()) == left.encode()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize(
    "name",
    [
        *("kv_transfer_params", "ec_transfer_params", "kv\\u005ftransfer_params", "kv_cache_report_mode"),
        *("request_id", "rid", "r\\u0069d"),
    ],
)
def test_no_route_lets_them_through(path: str, name: str) -> None:
    prompt = {
        "/v1/chat/completions": '"messages":[{"role":"user","content":"kv_transfer_params"}]',
        "/v1/completions": '"prompt":"kv_transfer_params"',
        "/v1/embeddings": '"input":"kv_transfer_params"',
    }[path]
    params = json.dumps(HAND_OFF)
    sent = f'{{"{name}":{params},"model":"tiny",{prompt},"{name}":{params},"vllm_xargs":{{"{name}":"x"}}}}'

    async def main() -> None:
        async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
            assert (await request(running.url, sent.encode(), path=path)).status == 200
            assert engine.calls[0].body.decode() == f'{{"model":"tiny",{prompt},"vllm_xargs":{{}}}}'

    run_async(main())


@pytest.mark.parametrize("where", ['"kv_cache_report_mode":"full"', '"vllm_xargs":{"kv_cache_report_mode":"full"}'])
def test_no_client_has_an_engine_announce_what_it_did_not_store(where: str) -> None:
    async def main() -> None:
        async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
            prompt = '"messages":[{"role":"user","content":"a"}]'
            sent = f'{{"model":"tiny",{prompt},{where}}}'
            assert (await request(running.url, sent.encode(), path="/v1/chat/completions")).status == 200
            assert b"kv_cache_report_mode" not in engine.calls[0].body

    run_async(main())
