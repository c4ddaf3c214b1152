"""``/v1/embeddings``: the prompt is computed, and the answer is a unit vector of its tokens."""

import base64
import hashlib
import math
from array import array

from fairlead_sim.api.app import RequestContext
from fairlead_sim.generation import requests
from fairlead_sim.generation.prompts import parse_prompts
from fairlead_sim.generation.requests import TokenizedPrompt
from fairlead_sim.generation.responses import GenerationResponse
from fairlead_sim.generation.streaming import json_bytes
from fairlead_sim.http.errors import InvalidRequest, RouteNotFound
from fairlead_sim.http.fields import RequestFields, json_body


def embeddings(context: RequestContext) -> None:
    engine = context.engine
    if engine.settings.task == "generate":
        raise RouteNotFound
    fields = RequestFields(json_body(context.request))
    generation_request = requests.parse_common(fields, context.request, context.new_request_id())
    dimensions = fields.integer("dimensions") or engine.settings.embedding_dimensions
    encoding = fields.text("encoding_format", "float")
    fields.check()
    engine.models.resolve(generation_request)
    if "input" not in fields.body:
        fields.add_missing("input")
    generation_request.prompts = parse_prompts(fields, "input", engine.prompt_parser)
    fields.check()
    if encoding not in ("float", "base64"):
        raise InvalidRequest.for_value("encoding_format must be float or base64", "encoding_format", encoding)
    if not 1 <= dimensions <= 65_536:
        raise InvalidRequest.for_value("dimensions must be from 1 to 65536", "dimensions", dimensions)
    requests.validate_prompts(generation_request, engine.settings.max_model_len, engine.tokenizer.vocab_size)
    response = EmbeddingResponse(engine, generation_request, context.writer)
    response.dimensions = dimensions
    response.is_base64 = encoding == "base64"
    engine.compute(response, generation_request.prompts)


class EmbeddingResponse(GenerationResponse):
    """The JSON object with a vector per input."""

    id_prefix = "embd-"
    dimensions = 1
    is_base64 = False

    def finish(self) -> None:
        tokens = self.prompt_tokens
        body = {
            "id": self.id,
            "object": "list",
            "created": self.created,
            "model": self.request.model,
            "data": [
                {"index": at, "object": "embedding", "embedding": self._vector(choice.prompt)}
                for at, choice in enumerate(self.choices)
            ],
            "usage": {
                "prompt_tokens": tokens,
                "total_tokens": tokens,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        }
        self.writer.send(200, json_bytes(body))

    def _vector(self, prompt: TokenizedPrompt) -> list[float] | str:
        values = embedding_vector(prompt.tokens, self.dimensions)
        return base64.b64encode(values.tobytes()).decode() if self.is_base64 else list(values)


def embedding_vector(tokens: list[int], dimensions: int) -> "array[float]":
    """Returns a unit vector that depends on every token; equal tokens have equal vectors."""
    numbers = array("H", hashlib.shake_128(array("I", tokens).tobytes()).digest(2 * dimensions))
    centred = [value / 32_767.5 - 1.0 for value in numbers]
    length = math.sqrt(sum(value * value for value in centred)) or 1.0
    return array("f", [value / length for value in centred])
