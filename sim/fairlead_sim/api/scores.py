"""Rankings, scores and classes: texts are computed, and the answer has numbers for each.

The score of a pair is the share of tokens that both texts have, so a document with the words of the
query comes first.

Source: vLLM 0.32, entrypoints/pooling/score/protocol.py and classify/protocol.py.
"""

from typing import Any

from fairlead_sim.api.app import RequestContext
from fairlead_sim.api.completions import embedding_vector
from fairlead_sim.generation import requests
from fairlead_sim.generation.requests import TokenizedPrompt
from fairlead_sim.generation.responses import GenerationResponse
from fairlead_sim.generation.streaming import json_bytes
from fairlead_sim.http.errors import InvalidRequest, RouteNotFound
from fairlead_sim.http.fields import RequestFields, json_body


class ComputedResponse(GenerationResponse):
    """An answer that is known before its prompts are computed: an object for each text."""

    data: tuple[dict[str, Any], ...] = ()

    def finish(self) -> None:
        head: dict[str, Any] = {"id": self.id, "model": self.request.model}
        usage: dict[str, Any] = {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens}
        if self.id.startswith("rerank-"):
            body = {**head, "usage": usage, "results": self.data}
        else:
            usage |= {"completion_tokens": 0, "prompt_tokens_details": None}
            body = {**head, "object": "list", "created": self.created, "data": self.data, "usage": usage}
        self.writer.send(200, json_bytes(body))


def rerank(context: RequestContext) -> None:
    fields = _fields(context, "query", "documents")
    top, documents = fields.integer("top_n", 0) or 0, fields.strings("documents")
    scores, prompts = _pairs(context, (fields.text("query") or "",), documents)
    results = [
        {"index": at, "document": {"text": documents[at], "multi_modal": None}, "relevance_score": score}
        for at, score in sorted(enumerate(scores), key=lambda item: -item[1])
    ]
    _compute(context, fields, "rerank-", results[: top if top > 0 else None], prompts)


def score(context: RequestContext) -> None:
    fields = _fields(context, "text_1", "text_2")
    scores, prompts = _pairs(context, fields.strings("text_1"), fields.strings("text_2"))
    data = [{"index": at, "object": "score", "score": score} for at, score in enumerate(scores)]
    _compute(context, fields, "score-", data, prompts)


def classify(context: RequestContext) -> None:
    """Sends two classes for each input, whose probabilities depend on every token."""
    fields = _fields(context, "input")
    prompts = [context.engine.tokenizer.encode(text) for text in fields.strings("input")]
    shares = [0.5 + embedding_vector(tokens, 2)[0] / 2 for tokens in prompts]
    data = [
        {"index": at, "label": f"LABEL_{int(share < 0.5)}", "probs": [share, 1.0 - share], "num_classes": 2}
        for at, share in enumerate(shares)
    ]
    _compute(context, fields, "classify-", data, prompts)


def _fields(context: RequestContext, *required: str) -> RequestFields:
    if context.engine.settings.task == "generate":
        raise RouteNotFound
    fields = RequestFields(json_body(context.request))
    for name in required:
        fields.require(name)
    return fields


def _pairs(
    context: RequestContext, first: tuple[str, ...], second: tuple[str, ...]
) -> tuple[list[float], list[list[int]]]:
    """Returns the score of each pair, and its tokens; empty if the lengths do not fit."""
    if not first or not second or len(first) not in (1, len(second)):
        return [], []
    encode = context.engine.tokenizer.encode
    pairs = [
        (encode(one), encode(other)) for one, other in zip(first * (len(second) // len(first)), second, strict=True)
    ]
    return [len({*one} & {*other}) / max(1, len({*one, *other})) for one, other in pairs], [a + b for a, b in pairs]


def _compute(
    context: RequestContext, fields: RequestFields, prefix: str, data: list[dict[str, Any]], prompts: list[list[int]]
) -> None:
    engine = context.engine
    request = requests.parse_common(fields, context.request, engine.new_id())
    fields.check()
    engine.models.resolve(request)
    if not prompts:
        raise InvalidRequest("Input lengths must be either 1:1, 1:N or N:N")
    request.prompts = [TokenizedPrompt(tokens) for tokens in prompts]
    requests.validate_prompts(request, engine.settings.max_model_len, engine.tokenizer.vocab_size)
    response = ComputedResponse(engine, request, context.writer)
    response.id, response.data = prefix + request.request_id, tuple(data)
    engine.compute(response, request.prompts)
