"""Fields between gateways and engines reach no engine, however they are written; special ones need
a deliberate yes; all other fields pass unchanged.
"""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.fleet.model import Fleet, Model, RequestPolicy, UnknownFields
from fairlead.limits import Limits
from fairlead_gateway.dialects.schemas import GenerationFields
from fairlead_gateway.dialects.table import BY_TYPE, LISTED_KINDS
from fairlead_gateway.errors import BadRequest
from fairlead_gateway.openai.field_policy import (
    FIELDS,
    REFUSED_FIELDS,
    REMOVED_FIELDS,
    _known_by_path,
    apply_field_policy,
    known_fields,
    remove_fields,
)
from fairlead_gateway.openai.request import parse_request
from fairlead_testing.engines.scripted import scripted_engine
from fairlead_testing.gateway.running_gateway import fleet_of, running_gateway
from fairlead_testing.http.raw_client import request

pytestmark = pytest.mark.simulated

Pairs = list[tuple[str, object]]
NAMES = st.sampled_from(
    [*REMOVED_FIELDS, "vllm_xargs", "model", "kv_transfer_param", 'kv_transfer_params"', "é", "\\u005f"]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=12)
    | st.sampled_from([*REMOVED_FIELDS, '{"kv_transfer_params":1}']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
SPACE = st.sampled_from(["", "", " ", "\n\t", "  "])


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
    left = [(key, value) for key, value in members if key not in REMOVED_FIELDS]
    return [
        (key, {k: v for k, v in value.items() if k not in REMOVED_FIELDS})
        if key == "vllm_xargs" and isinstance(value, dict)
        else (key, value)
        for key, value in left
    ]


@given(written())
def test_the_fields_are_gone_and_all_other_members_stay_in_order(case: tuple[str, Pairs]) -> None:
    text, members = case
    after = remove_fields(text.encode())
    pairs = json.loads(after, object_pairs_hook=lambda items: items)
    expected = json.loads(json.dumps([value for _, value in remaining(members)]), object_pairs_hook=lambda items: items)
    assert [key for key, _ in pairs] == [key for key, _ in remaining(members)]
    assert [value for _, value in pairs] == expected
    if remaining(members) == members:
        assert after == text.encode()


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
    assert remove_fields(body.encode()) == left.encode()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize(
    "name",
    [
        *("kv_transfer_params", "ec_transfer_params", "kv\\u005ftransfer_params", "kv_cache_report_mode"),
        *("request_id", "rid", "r\\u0069d", "bootstrap_host", "bootstrap_port", "bootstrap_room"),
        *("bootstrap\\u005froom", "routed_dp_rank", "data_parallel_rank", "disagg_prefill_dp_rank"),
        *("disaggregated_params", "id_slot", "stream_interval"),
    ],
)
async def test_no_route_lets_them_through(path: str, name: str) -> None:
    prompt = {
        "/v1/chat/completions": '"messages":[{"role":"user","content":"kv_transfer_params"}]',
        "/v1/completions": '"prompt":"kv_transfer_params"',
        "/v1/embeddings": '"input":"kv_transfer_params"',
    }[path]
    params = json.dumps({"do_remote_prefill": True, "remote_engine_id": "x", "remote_block_ids": [1]})
    sent = f'{{"{name}":{params},"model":"tiny",{prompt},"{name}":{params},"vllm_xargs":{{"{name}":"x"}}}}'
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        assert (await request(running.url, sent.encode(), path=path)).status == 200
        assert engine.calls[0].body.decode() == f'{{"model":"tiny",{prompt},"vllm_xargs":{{}}}}'


@pytest.mark.parametrize("where", ['"kv_cache_report_mode":"full"', '"vllm_xargs":{"kv_cache_report_mode":"full"}'])
async def test_no_client_has_an_engine_announce_what_it_did_not_store(where: str) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        prompt = '"messages":[{"role":"user","content":"a"}]'
        sent = f'{{"model":"tiny",{prompt},{where}}}'
        assert (await request(running.url, sent.encode(), path="/v1/chat/completions")).status == 200
        assert b"kv_cache_report_mode" not in engine.calls[0].body


PROMPTS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/rerank": {"query": "hi", "documents": ["a"]},
}


def fleet_with(url: str, **policy: Any) -> Fleet:
    """Returns a fleet of one engine whose model has a request policy."""
    return fleet_of([url], requests=RequestPolicy(**policy))


def apply(body: dict[str, Any], path: str = "/v1/chat/completions", **policy: Any) -> dict[str, Any]:
    """Returns the fields that an engine gets."""
    text = json.dumps(body).encode()
    model = Model("default", "tiny", requests=RequestPolicy(**policy))
    members = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    edited: dict[str, Any] = json.loads(apply_field_policy(text, members, path, model))
    return edited


def _unchanged(body: bytes) -> bytes:
    """Returns a body without what the gateway adds to one of `/v1/responses`."""
    return body.replace(b'{"store":false,', b"{", 1)


@pytest.mark.parametrize("path", PROMPTS)
@pytest.mark.parametrize("name", REFUSED_FIELDS)
async def test_a_special_field_is_refused_with_the_setting_that_allows_it(path: str, name: str) -> None:
    body = json.dumps({"model": "tiny", **PROMPTS[path], name: 5}).encode()
    escaped = body.replace(f'"{name}"'.encode(), f'"\\u{ord(name[0]):04x}{name[1:]}"'.encode())
    async with scripted_engine() as engine:
        async with running_gateway(fleet_of([engine.url])) as running:
            for sent in (body, escaped):
                answer = await request(running.url, sent, path=path)
                error = answer.error
                assert (answer.status, error["code"], error["param"]) == (400, "field_not_allowed", name)
                assert f"engine.allowedFields: [{name}]" in error["message"]
            assert engine.calls == []
        async with running_gateway(fleet_with(engine.url, allowed_fields=frozenset({name}))) as running:
            assert (await request(running.url, body, path=path)).status == 200
            assert _unchanged(engine.calls[0].body) == body


PROGRAM = "{% for i in range(999999999) %}{% endfor %}"
ARGUMENT_PATHS = {
    **PROMPTS,
    "/tokenize": {"prompt": "hi"},
    "/v1/tokenize": {"prompt": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    "/v1/chat/completions/batch": {"messages": [[{"role": "user", "content": "hi"}]]},
}
PROGRAM_ARGUMENTS = [
    ("chat_template_kwargs", {"chat_template": PROGRAM, "tokenize": False}, "chat_template_kwargs.chat_template"),
    ("chat_template_kwargs", {"tokenize": False}, "chat_template_kwargs.tokenize"),
    ("chat_template_kwargs", {"a": {"b": {"documents": []}}}, "chat_template_kwargs.a.b.documents"),
    ("chat_template_kwargs", {"a": [{"tools": 1}]}, "chat_template_kwargs.a.tools"),
    ("chat_template_kwargs", {"note": "x" * 257}, "chat_template_kwargs.note"),
    ("chat_template_kwargs", {"a b": PROGRAM * 9}, "chat_template_kwargs"),
    ("chat_template_kwargs", {"a": [[[[[1]]]]]}, "chat_template_kwargs.a"),
    ("chat_template_kwargs", {f"k{number}": "x" * 200 for number in range(30)}, "chat_template_kwargs"),
    ("chat_template_kwargs", '{"chat_template": "x"}', "chat_template_kwargs"),
    ("vllm_xargs", {"chat_template": PROGRAM}, "vllm_xargs.chat_template"),
    ("vllm_xargs", {"chat_template_kwargs": {"chat_template": "x"}}, "vllm_xargs.chat_template_kwargs.chat_template"),
    ("vllm_xargs", {"priority": -5}, "vllm_xargs.priority"),
    ("mm_processor_kwargs", {"device": "cuda"}, "mm_processor_kwargs.device"),
    ("mm_processor_kwargs", {"images_kwargs": {"min_pixels": 10**12}}, "mm_processor_kwargs.images_kwargs.min_pixels"),
    ("media_io_kwargs", {"video": {"num_frames": 1e15}}, "media_io_kwargs.video.num_frames"),
    ("tokenizer_kwargs", {"truncation": True}, "tokenizer_kwargs.truncation"),
    ("custom_params", ["x"], "custom_params"),
]


@pytest.mark.parametrize("path", ARGUMENT_PATHS)
async def test_arguments_of_code_in_the_engine_pass_as_plain_values_alone(path: str) -> None:
    body = {"model": "tiny", **ARGUMENT_PATHS[path]}
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        for name, value, param in PROGRAM_ARGUMENTS:
            answer = await request(running.url, {**body, name: value}, path=path)
            assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "field_not_allowed", param)
            assert "engine.allowedFields: [" in answer.error["message"]
        assert engine.calls == []


PLAIN_ARGUMENTS: dict[str, object] = {
    "chat_template_kwargs": {
        "enable_thinking": False,
        "reasoning_effort": "high",
        "thinking_budget": 4096,
        "builtin_tools": ["browser"],
        "date_string": "27 November 2026",
        "preserve_thinking": None,
    },
    "mm_processor_kwargs": {"min_pixels": 784, "max_pixels": 12_845_056, "fps": 2.0, "size": {"shortest_edge": 336}},
    "media_io_kwargs": {"video": {"num_frames": -1}, "image": {"rgba_background_color": [0, 0, 0]}},
    "vllm_xargs": {"target": 5, "words": ["a", "b"]},
    "custom_params": None,
}


@pytest.mark.parametrize("path", ARGUMENT_PATHS)
@pytest.mark.parametrize("name", PLAIN_ARGUMENTS)
async def test_plain_arguments_of_templates_and_processors_pass(path: str, name: str) -> None:
    body = json.dumps({"model": "tiny", **ARGUMENT_PATHS[path], name: PLAIN_ARGUMENTS[name]}).encode()
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        assert (await request(running.url, body, path=path)).status == 200
        assert _unchanged(engine.calls[0].body) == body


@pytest.mark.parametrize("allowed", ["chat_template_kwargs", "chat_template"])
def test_an_argument_that_the_model_allows_passes(allowed: str) -> None:
    body = {"model": "tiny", "chat_template_kwargs": {"chat_template": "short"}}
    assert apply(body, allowed_fields=frozenset({allowed})) == body


PICTURE = {"type": "image_url", "image_url": None, "uuid": "photo-1"}
PARTS: list[tuple[dict[str, Any], str]] = [
    (PICTURE, "uuid"),
    ({"uuid": "photo-1"}, "uuid"),
    ({"type": "text", "text": "x", "image_embeds": "AAAA"}, "image_embeds"),
    ({"type": "image_embeds", "image_embeds": {"image_grid_thw": "AAAA"}}, "image_embeds"),
    ({"type": "audio_embeds", "audio_embeds": "AAAA"}, "audio_embeds"),
]
PART_PATHS = ["/v1/chat/completions", "/tokenize", "/v1/pooling", "/v1/messages", "/v1/responses"]


def _with_part(path: str, part: object, filler: int = 0) -> dict[str, Any]:
    message = {"role": "user", "content": [{"type": "text", "text": "x" * filler}, "y", part]}
    held: list[Any] = [{"role": "user", "content": "hi"}, message]
    return {"model": "tiny", "input" if path == "/v1/responses" else "messages": held}


def _escaped(name: str) -> str:
    return f"\\u{ord(name[0]):04x}{name[1:-3]}\\u{ord(name[-3]):04X}{name[-2:]}"


@pytest.mark.parametrize("path", [*PART_PATHS, "/v1/chat/completions/batch"])
async def test_parts_with_tensors_or_names_of_cached_pictures_are_refused(path: str) -> None:
    async with scripted_engine() as engine:
        async with running_gateway(fleet_of([engine.url])) as running:
            for part, name in PARTS:
                for filler in (0, 300_000):  # a large body is checked in a process
                    body = _with_part(path, part, filler)
                    if path.endswith("batch"):
                        body["messages"] = [body["messages"]]
                    text = json.dumps(body)
                    for sent in (text, text.replace(f'"{name}"', f'"{_escaped(name)}"')):
                        answer = await request(running.url, sent.encode(), path=path)
                        error = answer.error
                        assert (answer.status, error["param"]) == (400, f"content[].{name}")
                        assert f"engine.allowedFields: [{name}]" in error["message"]
            assert engine.calls == []
        async with running_gateway(fleet_with(engine.url, allowed_fields=frozenset({"uuid"}))) as running:
            allowed = json.dumps(_with_part(path, PICTURE)).encode()
            assert (await request(running.url, allowed, path=path)).status == 200
            assert _unchanged(engine.calls[0].body) == allowed


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": '"uuid": 1, "image_embeds": 2'},
        {"type": "text", "text": "uuid"},
        {"type": "image_url", "image_url": {"url": "data:x"}, "uuid": None},
        {"type": "tool_use", "name": "f", "input": {"uuid": "a", "image_embeds": "b"}},
    ],
)
@pytest.mark.parametrize("path", PART_PATHS)
async def test_parts_without_such_fields_pass_unchanged(path: str, part: object) -> None:
    schema = {"type": "object", "properties": {"uuid": {}, "image_embeds": {}}}
    body = {**_with_part(path, part), "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}
    text = json.dumps(body).replace("hi", "\\u0068i").encode()
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        assert (await request(running.url, text, path=path)).status == 200
        assert _unchanged(engine.calls[0].body) == text


async def test_odd_content_does_not_hide_other_parts() -> None:
    odd = {"role": "user", "content": {"a": 1}}
    body = {"model": "tiny", "messages": [odd, {"role": "user", "content": [PICTURE]}]}
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        for path in ("/tokenize", "/v1/pooling"):
            answer = await request(running.url, body, path=path)
            assert (answer.status, answer.error["param"]) == (400, "content[].uuid")
        assert engine.calls == []


def _hidden(part: object) -> list[Any]:
    """Returns values that hold a part at several depths."""
    return [
        part,
        [part],
        {"content": [part]},
        {"role": "user", "content": part},
        [{"role": "tool", "content": [{"type": "tool_result", "content": ["a", part]}]}],
        {"variables": {"picture": [[part]]}},
    ]


def _fields_by_path() -> list[tuple[str, list[str]]]:
    """Returns the fields that some engine has on each path, and one that none has."""
    found: dict[str, set[str]] = {}
    for table in FIELDS.values():
        for path, names in table.items():
            found.setdefault(path, {"unheard_of"}).update(names.split())
    return [(path, sorted(names - REMOVED_FIELDS)) for path, names in sorted(found.items())]


@pytest.mark.parametrize(("path", "names"), _fields_by_path())
def test_no_field_of_any_path_hides_a_forbidden_part(path: str, names: list[str]) -> None:
    fleet = fleet_of(["http://e:1"], requests=RequestPolicy(unknown_fields=UnknownFields.PASS))
    chat = PROMPTS["/v1/chat/completions"]
    base: dict[str, Any] = {"model": "tiny", "max_tokens": 5, **PROMPTS.get(path, chat)}
    for name in names:
        for part, _ in PARTS:
            for value in _hidden(part)[0 if "type" in part else 2 :][: None if "type" in part else 3]:
                if name == "model":
                    continue
                text = json.dumps(base | {name: value}).encode()
                with pytest.raises(BadRequest):
                    parse_request(path, text, fleet, Limits())
            quoted = json.dumps(base | {"user": json.dumps({"content": [part]})}).encode()
            parse_request(path, quoted, fleet, Limits())


INSIDE = "http://10.0.0.1/latest/meta-data"
FETCHED: list[tuple[dict[str, Any], str]] = [
    ({"type": "image_url", "image_url": {"url": INSIDE}}, "image_url"),
    ({"type": "image_url", "image_url": {"url": "/etc/passwd"}}, "image_url"),
    ({"type": "image_url", "image_url": {"detail": "low", "url": " data:x"}}, "image_url"),
    ({"type": "input_image", "image_url": INSIDE}, "image_url"),
    ({"type": "video_url", "video_url": {"url": "FILE:///a.mp4"}}, "video_url"),
    ({"type": "audio_url", "audio_url": {"url": "https://example.com/a.wav"}}, "audio_url"),
    ({"type": "image_url", "image_url": [INSIDE]}, "image_url"),
    ({"type": "image", "source": {"type": "url", "url": INSIDE}}, "source"),
    ({"type": "input_file", "file_url": INSIDE}, "file_url"),
    ({"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": INSIDE}}]}, "source"),
    ({"type": "function_call_output", "output": [{"type": "input_image", "image_url": INSIDE}]}, "image_url"),
]
NOT_FETCHED = [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    {"type": "input_image", "image_url": "DATA:image/png;base64,AAAA"},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
    {"type": "text", "text": f'"image_url": {{"url": "{INSIDE}"}}'},
    {"type": "image_url", "image_url": None},
]


@pytest.mark.parametrize("kind", ["trtllm", "llamacpp"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_engines_without_a_list_of_hosts_fetch_no_media(path: str, kind: str) -> None:
    async with scripted_engine() as engine:
        async with running_gateway(fleet_with(engine.url, engines=frozenset({kind}))) as running:
            for part, name in FETCHED:
                for filler in (0, 300_000):
                    text = json.dumps(_with_part(path, part, filler))
                    for sent in (text, text.replace(f'"{name}"', f'"{_escaped(name)}"')):
                        answer = await request(running.url, sent.encode(), path=path)
                        assert (answer.status, answer.error["param"]) == (400, f"content[].{name}"), part
            assert engine.calls == []
            for allowed in NOT_FETCHED:
                assert (await request(running.url, _with_part(path, allowed), path=path)).status == 200
        policy = {"engines": frozenset({kind}), "allowed_fields": frozenset({"image_url"})}
        async with running_gateway(fleet_with(engine.url, **policy)) as running:
            assert (await request(running.url, _with_part(path, FETCHED[0][0]), path=path)).status == 200
        async with running_gateway(fleet_with(engine.url, engines=frozenset({"vllm"}))) as running:
            assert (await request(running.url, _with_part(path, FETCHED[0][0]), path=path)).status == 200


def test_an_argument_that_no_parser_agrees_on_is_refused() -> None:
    for text in ('{"a":1e999}', '{"a":"\\ud800"}'):
        members = {"chat_template_kwargs": msgspec.Raw(text.encode())}
        with pytest.raises(BadRequest, match="chat_template_kwargs: holds a text or a number that is not valid"):
            apply_field_policy(b"{}", members, "/v1/chat/completions", Model("default", "tiny"))


TOKENS_BY_PATH = {
    "/v1/completions": {"prompt": [200_000]},
    "/v1/embeddings": {"input": [[], [5]]},
    "/v1/score": {"query": [200_000], "items": ["a"]},
    "/v1/classify": {"input": [200_000]},
}


@pytest.mark.parametrize("path", TOKENS_BY_PATH)
async def test_prompt_of_token_ids_reaches_no_engine_that_does_not_check_them(path: str) -> None:
    body = {"model": "tiny", **TOKENS_BY_PATH[path]}
    async with scripted_engine() as engine:
        for policy, status in (
            ({"engines": frozenset({"sglang"})}, 400),
            ({"engines": frozenset({"sglang", "vllm"})}, 400),
            ({"engines": frozenset({"sglang"}), "allowed_fields": frozenset({"input_ids"})}, 200),
            ({"engines": frozenset({"vllm"})}, 200),
        ):
            async with running_gateway(fleet_with(engine.url, **policy)) as running:
                answer = await request(running.url, body, path=path)
                assert answer.status == status
                if status == 400:
                    assert answer.error["param"] in body
                    assert "engine.allowedFields: [input_ids]" in answer.error["message"]
                    assert engine.calls == []
                texts = {"model": "tiny", **PROMPTS.get(path, {"query": "5", "items": ["1"]}), "input": "[5]"}
                assert (await request(running.url, texts, path=path)).status == 200
                engine.calls.clear()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_stop_tokens_that_engines_use_as_indices_need_a_deliberate_yes(path: str) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        for stop, minimum, status in (
            ([10**6], 1, 400),
            ([-5], 3, 400),
            ([10**6], 0, 200),
            ([10**6], None, 200),
            ([], 3, 200),
            (None, 3, 200),
        ):
            body = {"model": "tiny", **PROMPTS[path], "stop_token_ids": stop, "min_tokens": minimum}
            answer = await request(running.url, body, path=path)
            assert answer.status == status, (stop, minimum)
            if status == 400:
                assert (answer.error["code"], answer.error["param"]) == ("field_not_allowed", "stop_token_ids")
    both = {"stop_token_ids": [7], "min_tokens": 3}
    assert apply(both, allowed_fields=frozenset({"stop_token_ids"})) == both


def test_a_priority_beyond_64_bits_is_refused_where_clients_may_set_one() -> None:
    for priority in (2**63, "high"):
        with pytest.raises(BadRequest, match="priority: "):
            apply({"priority": priority}, allowed_fields=frozenset({"priority"}))


def test_a_special_field_that_is_null_counts_as_absent() -> None:
    assert apply({"model": "tiny", "priority": None, "seed": None}) == {"model": "tiny", "seed": None}


def test_unknown_fields_pass_or_are_refused_as_the_model_says() -> None:
    body = {"model": "tiny", "messages": [], "odd": 1}
    strict: dict[str, Any] = {"engines": frozenset({"vllm"}), "unknown_fields": UnknownFields.REFUSE}
    assert apply(body) == body
    with pytest.raises(BadRequest, match="odd: is not a field of") as caught:
        apply(body, **strict)
    assert (caught.value.param, caught.value.code) == ("odd", "field_not_allowed")
    assert apply(body, **strict, allowed_fields=frozenset({"odd"})) == body
    with pytest.raises(BadRequest, match=r"^a field: ") as caught:
        apply({"tell me a secret": 1}, **strict)
    assert caught.value.param is None
    assert apply({"odd": 1}, "/v1/made/up", **strict) == {"odd": 1}


async def test_a_model_that_refuses_unknown_fields_looks_at_every_body() -> None:
    async with scripted_engine() as engine:
        policy = {"engines": frozenset({"sglang"}), "unknown_fields": UnknownFields.REFUSE}
        async with running_gateway(fleet_with(engine.url, **policy)) as running:
            for name, status in (("add_generation_prompt", 400), ("session_id", 200), ("separate_reasoning", 200)):
                body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], name: None}
                assert (await request(running.url, body)).status == status, name


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_public_fields_of_an_engine_pass(engine: str) -> None:
    for path, names in FIELDS[engine].items():
        public = {name: None for name in names.split() if name not in REMOVED_FIELDS and name not in REFUSED_FIELDS}
        assert apply(public, path) == public
        assert apply(public, path, engines=frozenset({engine}), unknown_fields=UnknownFields.REFUSE) == public


def test_fields_that_are_listed_as_safe_are_public_and_need_no_check() -> None:
    for kind, listed in LISTED_KINDS.items():
        known = known_fields("custom", BY_TYPE[kind].paths[0])
        assert known is not None
        names = set(listed.__struct_fields__)
        assert not names & (REMOVED_FIELDS | REFUSED_FIELDS.keys() | {"vllm_xargs"})
        generic = {*GenerationFields.__struct_fields__, "tools"}
        generic |= {"service_tier", "inference_geo", "context_management", "client_metadata"}  # of no engine
        assert names - generic <= known


def test_every_internal_field_is_one_of_an_engine() -> None:
    known = {name for paths in FIELDS.values() for names in paths.values() for name in names.split()}
    others = {"kv_cache_report_mode", "bootstrap_pair_key", "logits_processors"}
    others |= {"disaggregated_params", "lora_request", "prompt_token_ids", "prompt_token_ids_b64"}  # of TensorRT-LLM
    others |= {"id_slot", "lora", "n_predict", "n_cmpl", "grammar_triggers", "chat_parser"}  # of llama.cpp
    assert (REMOVED_FIELDS | REFUSED_FIELDS.keys()) - known == others


def test_paths_that_clients_make_up_are_not_remembered() -> None:
    known_fields("vllm", "/v1/completions")
    before = _known_by_path.cache_info().currsize
    for number in range(100):
        assert known_fields("vllm", f"/v1/files/{number}") is None
    assert _known_by_path.cache_info().currsize == before
