"""``/v1/embeddings``: a prompt is computed as any other, then answered with a unit vector drawn from its tokens."""

import base64
import hashlib
import math
from array import array

from fairlead_sim.server import asks
from fairlead_sim.server.answers import Answer
from fairlead_sim.server.app import Call
from fairlead_sim.server.asks import Prompt
from fairlead_sim.server.fields import Fields, json_body
from fairlead_sim.server.generating import fresh_id
from fairlead_sim.server.problems import NotServed, Refused
from fairlead_sim.server.prompts import several
from fairlead_sim.server.streams import quoted


def embeddings(call: Call) -> None:
    """Answer for one input or several."""
    engine = call.engine
    if engine.settings.task == "generate":
        raise NotServed
    fields = Fields(json_body(call.request))
    ask = asks.common(fields, call.request, fresh_id(call))
    dimensions = fields.integer("dimensions") or engine.settings.embedding_dimensions
    encoding = fields.text("encoding_format", "float")
    fields.check()
    engine.models.resolve(ask)
    if "input" not in fields.body:
        fields.missing("input")
    ask.prompts = several(fields, "input", engine.frontend)
    fields.check()
    if encoding not in ("float", "base64"):
        raise Refused.value("encoding_format must be float or base64", "encoding_format", encoding)
    if not 1 <= dimensions <= 65_536:
        raise Refused.value("dimensions must be at least 1", "dimensions", dimensions)
    asks.fits(ask, engine.settings.max_model_len, engine.tokenizer.vocab_size)
    answer = EmbeddingAnswer(engine, ask, call.reply)
    answer.dimensions = dimensions
    answer.encoded = encoding == "base64"
    engine.compute(answer, ask.prompts)


class EmbeddingAnswer(Answer):
    """One JSON object with a vector for each input."""

    id_prefix = "embd-"
    dimensions = 1
    encoded = False

    def complete(self) -> None:
        tokens = self.prompt_tokens
        body = {
            "id": self.id,
            "object": "list",
            "created": self.created,
            "model": self.ask.model,
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
        self.reply.send(200, quoted(body))

    def _vector(self, prompt: Prompt) -> list[float] | str:
        values = vector(prompt.tokens, self.dimensions)
        return base64.b64encode(values.tobytes()).decode() if self.encoded else list(values)


def vector(tokens: list[int], dimensions: int) -> "array[float]":
    """A unit vector that depends on every token; equal tokens, equal vector."""
    drawn = array("H", hashlib.shake_128(array("I", tokens).tobytes()).digest(2 * dimensions))
    centred = [value / 32_767.5 - 1.0 for value in drawn]
    length = math.sqrt(sum(value * value for value in centred)) or 1.0
    return array("f", [value / length for value in centred])
