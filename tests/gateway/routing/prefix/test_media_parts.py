"""Pictures and other parts count by part: they are found by key and form, and nothing else is."""

import base64
import json
import random
from typing import Any

import pytest

from fairlead_gateway.routing.load.prompt_sizes import PromptSizes
from fairlead_gateway.routing.prefix.prefix_hash import (
    MAX_PARTS,
    NOMINAL_TOKENS,
    PrefixChain,
    estimated_tokens,
    find_media,
    without_media,
)
from fairlead_gateway.routing.request import RouteRequest


def data(size: int = 30_000, seed: int = 1) -> str:
    return base64.b64encode(random.Random(seed).randbytes(size)).decode()


def url(mime: str = "image/png", size: int = 30_000, seed: int = 1) -> str:
    return f"data:{mime};base64,{data(size, seed)}"


FOUND: list[tuple[dict[str, Any], list[str]]] = [
    ({"type": "image_url", "image_url": {"url": url()}}, ["image"]),
    ({"type": "image_url", "image_url": {"detail": "low", "url": url(size=2_000_000)}}, ["image"]),
    ({"type": "input_image", "image_url": url("image/jpeg")}, ["image"]),
    ({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, ["image"]),
    ({"type": "audio_url", "audio_url": {"url": url("audio/wav")}}, ["audio"]),
    ({"type": "video_url", "video_url": {"url": url("video/mp4")}}, ["video"]),
    ({"type": "input_audio", "input_audio": {"data": data(), "format": "wav"}}, ["audio"]),
    ({"type": "input_audio", "input_audio": {"format": "mp3", "data": data()}}, ["audio"]),
    ({"type": "file", "file": {"filename": "a.pdf", "file_data": url("application/pdf")}}, ["file"]),
    ({"type": "input_file", "filename": "a.pdf", "file_data": data()}, ["file"]),
    ({"type": "input_file", "file_id": "file-1"}, ["file"]),
    ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data()}}, ["image"]),
    ({"type": "document", "source": {"data": data(), "media_type": "application/pdf"}}, ["file"]),
    ({"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}, ["image"]),
    ({"type": "image_embeds", "image_embeds": data()}, ["image"]),
]
TEXTS: list[object] = [
    {"type": "text", "text": url()},
    {"type": "text", "text": data()},
    {"type": "text", "text": json.dumps({"image_url": {"url": url()}})},
    {"type": "text", "text": json.dumps({"data": data(), "format": "wav"})},
    {"type": "text", "text": '"file_id": "file-1", "image_url": "https://'},
    {"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": json.dumps({"url": url()})}}]},
    {"type": "tool_use", "input": {"data": data()}},
    {"type": "tool_use", "input": {"note": url()}},
    url(),
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(("part", "kinds"), FOUND)
def test_parts_are_found_in_the_forms_of_all_apis(part: dict[str, Any], kinds: list[str], indent: int | None) -> None:
    text = json.dumps([{"type": "text", "text": "what is this?"}, part], indent=indent).encode()
    parts = find_media(text, 0, len(text))
    assert [part.kind for part in parts] == kinds
    measured = len(without_media(text, 0, len(text), parts)) / 4
    (nominal,) = [part.nominal_tokens for part in parts]
    assert nominal <= measured <= nominal + 100
    assert nominal <= estimated_tokens(text) <= nominal + 100


@pytest.mark.parametrize("value", TEXTS)
def test_texts_count_as_text_whatever_stands_in_them(value: object) -> None:
    text = json.dumps([value]).encode()
    assert find_media(text, 0, len(text)) == []
    assert estimated_tokens(text) == len(text) // 4


def test_many_parts_keep_their_order_and_the_text_between() -> None:
    kinds = ["image", "audio", "image", "file", "image"]
    parts = [FOUND[index][0] for index in (0, 6, 11, 8, 3)]
    text = json.dumps([{"type": "text", "text": "one"}, *parts, {"type": "text", "text": "last"}]).encode()
    media = find_media(text, 0, len(text))
    assert [part.kind for part in media] == kinds
    short = without_media(text, 0, len(text), media)
    assert short.startswith(b'[{"type": "text", "text": "one"}')
    assert short.endswith(b'{"type": "text", "text": "last"}]')
    assert data().encode() not in short


def test_a_part_outside_of_the_bounds_is_none() -> None:
    text = json.dumps({"image_url": url()}).encode()
    assert find_media(text, 0, 30) == []
    assert find_media(text, len(text) - 5, len(text)) == []


SMALL_PARTS = {
    "addresses": '{"file_id":""}',
    "repeated keys": '"file_id":"","file_id":""',
    "links": '{"image_url":"https:"}',
    "sources": '{"source":{"type":"url"}}',
    "empty data": '{"url":"data:x;base64,"}',
    "raw data": '{"file_data":"' + "A" * 256 + '"}',
}


@pytest.mark.parametrize("part", SMALL_PARTS.values(), ids=SMALL_PARTS.keys())
def test_a_prompt_of_tiny_parts_does_not_grow_by_their_number(part: str) -> None:
    text = ("[" + ",".join([part] * 40_000) + "]").encode()
    media = find_media(text, 0, len(text))
    assert len(media) == MAX_PARTS
    assert len(without_media(text, 0, len(text), media)) <= len(text) + MAX_PARTS * 4 * 2_048


class CountedText(bytes):
    """A text that counts the bytes that its searches may have read."""

    read = 0

    def find(self, *arguments: Any) -> int:
        at = super().find(*arguments)
        type(self).read += (arguments[2] if at < 0 else at) - arguments[1]
        return at


SIGNS = {
    "markers in a text": (b";base64,", b""),
    "data keys beside pictures": (b'"data",', b'{"url":"data:x;base64,"},'),
    "embeddings beside pictures": (b'"image_embeds",', b'{"url":"data:x;base64,"},'),
    "open texts": (b'"file_data":"', b""),
    "addresses": (b'"source":{', b'{"url":"data:x;base64,"},'),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("sign", "picture"), SIGNS.values(), ids=SIGNS.keys())
def test_parts_are_found_in_time_that_grows_with_the_text(sign: bytes, picture: bytes) -> None:
    text = CountedText(b"[" + picture * 20_000 + sign * 200_000 + b"]")
    CountedText.read = 0
    assert len(find_media(text, 0, len(text))) == (MAX_PARTS if picture else 0)
    assert CountedText.read <= 12 * len(text)


def test_what_is_beyond_the_last_part_counts_as_text() -> None:
    text = ("[" + ",".join(['{"file_id":""}'] * (MAX_PARTS + 400)) + "]").encode()
    assert estimated_tokens(text) == len(text) // 4 + MAX_PARTS * NOMINAL_TOKENS["file"][1]


def test_equal_pictures_have_equal_texts_and_others_do_not() -> None:
    texts = []
    for seed, size in ((1, 30_000), (1, 30_000), (2, 30_000)):
        text = json.dumps({"image_url": url(size=size, seed=seed)}).encode()
        texts.append(without_media(text, 0, len(text), find_media(text, 0, len(text))))
    assert texts[0] == texts[1] != texts[2]


def _request(size: int) -> RouteRequest:
    text = json.dumps([{"type": "text", "text": "x" * 400}, {"image_url": url(size=size)}]).encode()
    media = find_media(text, 0, len(text))
    request = RouteRequest("r", PrefixChain((), (), 0), len(without_media(text, 0, len(text), media)) / 4)
    request.media, request.media_tokens = media, float(sum(part.nominal_tokens for part in media))
    return request


def _measured(sizes: PromptSizes, caller: str, model: str, size: int = 30_000) -> float:
    request = _request(size)
    text = request.prompt_tokens - request.media_tokens
    sizes.measure_media(caller, model, request)
    assert request.prompt_tokens == pytest.approx(text + request.media_tokens)
    return request.media_tokens


def test_tokens_of_parts_are_learned_by_model_and_size_class() -> None:
    sizes, request = PromptSizes(), _request(30_000)
    for _ in range(20):
        sizes.learn("acme", "default/vlm", request, request.prompt_tokens, 110 + 2_600)
    nominal = NOMINAL_TOKENS["image"]
    assert abs(_measured(sizes, "acme", "default/vlm") - 2_600) < 100
    assert _measured(sizes, "acme", "default/vlm", 4_000_000) == nominal[3]
    assert _measured(sizes, "acme", "default/other") == nominal[0]


def test_dense_text_of_a_caller_makes_no_pictures_of_others_large() -> None:
    sizes, request = PromptSizes(), _request(30_000)
    for _ in range(50):
        sizes.learn("mallory", "default/vlm", request, request.prompt_tokens, 400_000)
    assert _measured(sizes, "mallory", "default/vlm") > 10_000
    assert _measured(sizes, "acme", "default/vlm") == NOMINAL_TOKENS["image"][0]


def test_text_density_is_learned_by_caller_and_model() -> None:
    sizes = PromptSizes()
    request = RouteRequest("r", PrefixChain((), (), 0), 1_000.0)
    for _ in range(20):
        sizes.learn("acme", "default/tiny", request, 1_200.0, 2_000)
    assert sizes.prompt_tokens("acme", "default/tiny", request, 1_200.0) == pytest.approx(2_000)
    assert sizes.prompt_tokens("zeta", "default/tiny", request, 1_200.0) == 1_200.0
    assert sizes.prompt_tokens("acme", "default/other", request, 1_200.0) == 1_200.0
    with_picture = _request(30_000)
    text = with_picture.prompt_tokens - with_picture.media_tokens
    tokens = sizes.prompt_tokens("acme", "default/tiny", with_picture, with_picture.prompt_tokens)
    assert tokens == pytest.approx(with_picture.media_tokens + 2 * text)
