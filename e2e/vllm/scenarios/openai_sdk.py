"""The unmodified ``openai`` client against a gateway and a real engine: run by the clients'
interpreter, one JSON line a check. What ``sdks/checks.py`` checks in both languages is not here.

Usage: ``sdk.py BASE_URL KEY MODEL EMBEDDING_MODEL``.
"""

import base64
import json
import struct
import sys
from collections.abc import Callable
from typing import Any

import openai

BASE, KEY, MODEL, EMBEDDING = sys.argv[1:]
client = openai.OpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=0, timeout=180)
ASKED: list[Any] = [{"role": "user", "content": "def parse(text: str) -> list[str]:"}]


def models_are_listed() -> dict[str, Any]:
    """With the ids that clients use."""
    names = sorted(one.id for one in client.models.list())
    assert names == sorted([MODEL, EMBEDDING]), names
    return {"models": names}


def a_model_is_retrieved() -> dict[str, Any]:
    """The engine itself does not serve this path."""
    found = client.models.retrieve(MODEL)
    assert (found.id, found.object) == (MODEL, "model")
    return {}


def running_usage() -> dict[str, Any]:
    """Usage in every event for those who ask for that."""
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    whole = {"ignore_eos": True}
    stream = client.completions.create(
        model=MODEL, prompt="import os", max_tokens=6, stream=True, stream_options=options, extra_body=whole
    )
    counted = [one.usage.completion_tokens for one in stream if one.usage]
    assert counted[-1] == 6, counted
    assert len(counted) > 2, counted
    return {"events": len(counted)}


def several_choices() -> dict[str, Any]:
    """Sends requests with ``n`` choices, whole and streamed."""
    found = client.completions.create(model=MODEL, prompt="import os", max_tokens=5, n=2, temperature=1.0, seed=1)
    assert len(found.choices) == 2
    stream = client.completions.create(
        model=MODEL, prompt="import os", max_tokens=5, n=2, temperature=1.0, seed=1, stream=True
    )
    assert {choice.index for one in stream for choice in one.choices} == {0, 1}
    return {}


def completions() -> dict[str, Any]:
    """Text and token ids as a prompt, log-probabilities, whole and streamed."""
    found = client.completions.create(model=MODEL, prompt="import os", max_tokens=5, temperature=0, logprobs=2)
    assert found.choices[0].logprobs is not None
    assert len(found.choices[0].logprobs.tokens or []) == 5
    stream = client.completions.create(model=MODEL, prompt="import os", max_tokens=5, temperature=0, stream=True)
    assert "".join(one.choices[0].text for one in stream if one.choices) == found.choices[0].text
    assert client.completions.create(model=MODEL, prompt=[300, 301, 302], max_tokens=2).usage.prompt_tokens == 3
    assert len(client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=2).choices) == 2
    return {}


def a_namespaced_name() -> dict[str, Any]:
    """``namespace/name`` works as well, and an extension of the engine goes through."""
    found = client.completions.create(
        model=f"default/{MODEL}", prompt="import os", max_tokens=3, temperature=0, extra_body={"return_token_ids": True}
    )
    assert len(found.choices[0].model_extra["token_ids"]) == 3
    return {}


def embeddings() -> dict[str, Any]:
    """As numbers, and in base64 as the client asks for them by itself."""
    plain = client.embeddings.create(model=EMBEDDING, input=["one", "two"], encoding_format="float")
    packed = client.embeddings.create(model=EMBEDDING, input=["one", "two"], encoding_format="base64")
    size = len(plain.data[0].embedding)
    raw: Any = packed.data[0].embedding
    numbers = struct.unpack(f"<{size}f", base64.b64decode(raw)) if isinstance(raw, str) else raw
    assert max(abs(one - other) for one, other in zip(plain.data[0].embedding, numbers, strict=True)) < 0.05
    return {"dimensions": size}


def tokenizing() -> dict[str, Any]:
    """To ids and back."""
    root = client.with_options(base_url=BASE)
    told: Any = root.post("/tokenize", body={"model": MODEL, "prompt": "import os"}, cast_to=object)
    back: Any = root.post("/detokenize", body={"model": MODEL, "tokens": told["tokens"]}, cast_to=object)
    assert "import os" in back["prompt"]
    return {"tokens": told["count"]}


def errors() -> dict[str, Any]:
    """Each is the exception that programs expect, with the field that is wrong."""
    seen = {}
    cases: list[tuple[str, type[openai.APIStatusError], Callable[[], object]]] = [
        ("another model", openai.NotFoundError, lambda: client.completions.create(model="nobody", prompt="x")),
        ("retrieve another model", openai.NotFoundError, lambda: client.models.retrieve("nobody")),
        (
            "a count out of range",
            openai.BadRequestError,
            lambda: client.completions.create(model=MODEL, prompt="x", n=10**9),
        ),
        (
            "temperature",
            openai.BadRequestError,
            lambda: client.completions.create(model=MODEL, prompt="x", temperature=-1),
        ),
        ("too long", openai.BadRequestError, lambda: client.completions.create(model=MODEL, prompt="x y " * 9_000)),
        ("no messages", openai.BadRequestError, lambda: client.chat.completions.create(model=MODEL, messages=[])),
        ("no embeddings here", openai.NotFoundError, lambda: client.embeddings.create(model=MODEL, input="x")),
        ("no generation here", openai.APIStatusError, lambda: client.completions.create(model=EMBEDDING, prompt="x")),
        ("no files", openai.NotFoundError, lambda: client.files.list()),
        ("no key", openai.AuthenticationError, lambda: client.with_options(api_key="wrong").models.list()),
    ]
    for name, expected, call in cases:
        try:
            call()
            raise AssertionError(f"{name}: nothing was raised")
        except expected as error:
            if not (isinstance(error.body, dict) and error.request_id):
                raise AssertionError(f"{name}: {error.body} of {error.request_id}") from error
            seen[name] = [error.status_code, error.code, error.param]
    return {"seen": seen}


def leaving() -> dict[str, Any]:
    """A stream that is closed after its first words; who looks at the engine is outside."""
    stream = client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=3_500, stream=True, extra_body={"ignore_eos": True}
    )
    for count, _ in enumerate(stream):
        if count == 5:
            break
    stream.close()
    return {}


CHECKS = (
    models_are_listed,
    a_model_is_retrieved,
    running_usage,
    several_choices,
    completions,
    a_namespaced_name,
    embeddings,
    tokenizing,
    errors,
    leaving,
)


def main() -> None:
    """Make every check."""
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            line = {"name": name, "holds": True, **check()}
        except Exception as error:  # noqa: BLE001 - the next check is made whatever this one met
            line = {"name": name, "holds": False, "why": f"{type(error).__name__}: {error}"[:1_000]}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
