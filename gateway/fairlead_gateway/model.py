"""Room 2, model: from a body to the model that the client means, and to the body that an engine may get.

A client names a model ``namespace/name``, or by its bare name where that is unique; an engine knows the bare name only. Other
changes that are ever made to a body: the usage of a stream is asked for, which engines tell only when asked, and fields
with which engines hand over caches are cut out (``handoff``).
"""

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

import msgspec
from msgspec import UNSET

from fairlead.errors import BadInput
from fairlead.fleet import Fleet, Model
from fairlead.limits import Limits
from fairlead.names import model_name, nearest
from fairlead_gateway.body import Chat, Common, Completion, Embedding, Generation, Other, parse, stream_options
from fairlead_gateway.errors import BadRequest, UnknownModel
from fairlead_gateway.handoff import without_handoff
from fairlead_gateway.splice import added, splice

PATHS: dict[str, type[Common]] = {
    "/v1/chat/completions": Chat,
    "/v1/completions": Completion,
    "/v1/embeddings": Embedding,
    **dict.fromkeys(("/tokenize", "/detokenize"), Other),
    **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), Other),
    **dict.fromkeys(("/score", "/v1/score", "/classify", "/v1/classify"), Other),
}
_COMPARED_CHARACTERS = 64
_COMPARED_NAMES = 40


@dataclass(slots=True)
class Ask:
    """A request that was understood. ``body`` goes to the engine; ``strip_usage``: the client did not ask for it. A
    passed-on one has its own ``method`` and ``target``; of what is ``opaque`` the answer is not read."""

    parsed: Common
    key: str
    model: Model
    body: bytes
    stream: bool
    strip_usage: bool
    method: str = "POST"
    target: str | None = None

    @property
    def opaque(self) -> bool:
        """Neither prompt nor answer are understood here."""
        return isinstance(self.parsed, Other)

    def forget(self) -> None:
        """Let the prompt go, when nobody will be asked again."""
        self.body = b""
        self.parsed.forget()

    @property
    def max_tokens(self) -> int | None:
        """What the client allows the answer to be."""
        parsed = self.parsed
        if isinstance(parsed, Chat) and parsed.max_completion_tokens is not None:
            return parsed.max_completion_tokens
        return parsed.max_tokens if isinstance(parsed, Generation) else None


def understand(path: str, body: bytes, fleet: Fleet, limits: Limits) -> Ask:
    """Read a request for a model. Raises BadRequest naming the field, UnknownModel naming near ones."""
    parsed = parse(PATHS[path], body, limits)
    if parsed.may_hand_over:
        body = without_handoff(body)
    key, model = found(parsed.model, fleet)
    changes: dict[str, bytes] = {}
    new: dict[str, bytes] = {}
    if parsed.model != model.name:
        changes["model"] = msgspec.json.encode(model.name)
    stream = isinstance(parsed, Generation) and bool(parsed.stream)
    strip = False
    if stream and isinstance(parsed, Generation):
        options = stream_options(parsed, limits)
        # With continuous statistics the client would see more than it asked for; its usage is read from its own events.
        strip = options is None or not (options.include_usage or options.continuous_usage_stats)
        if strip:
            given = bytes(parsed.stream_options) if options is not None and parsed.stream_options else b"{}"
            asking = splice(given, {"include_usage": b"true"})
            (new if parsed.stream_options is UNSET else changes)["stream_options"] = asking
    body = splice(body, changes) if changes else body
    return Ask(parsed, key, model, added(body, new) if new else body, stream, strip)


def find(name: str, fleet: Fleet) -> Model:
    """The model that a client's name means. Raises UnknownModel."""
    return found(name, fleet)[1]


def found(name: str, fleet: Fleet) -> tuple[str, Model]:
    """The model that a client's name means, behind its key. Raises UnknownModel."""
    key = fleet.resolve(name)
    if key is None:
        try:
            key = fleet.resolve(model_name(name))
        except BadInput as error:
            raise BadRequest(f"model: {error.message}", param="model", code="invalid_value") from None
    if key is None:
        raise _unknown(name, fleet)
    return key, fleet.models[key]


def shown_names(fleet: Fleet) -> dict[str, Model]:
    """What clients may call the models: the bare name where it is unique, else ``namespace/name``."""
    counts = Counter(model.name for model in fleet.models.values())
    return {model.name if counts[model.name] == 1 else key: model for key, model in sorted(fleet.models.items())}


def _unknown(name: str, fleet: Fleet) -> UnknownModel:
    clashing = sorted(key for key, model in fleet.models.items() if model.name == name)
    if clashing:
        hint = f"several namespaces have it; write one of: {', '.join(clashing[:5])}"
        return UnknownModel("model: the name is not unique", param="model", hint=hint)
    near = _near(name, [*shown_names(fleet), *fleet.models])
    hint = f"did you mean: {', '.join(near)}?" if near else "GET /v1/models lists what is served"
    return UnknownModel("model: no model of this name is served here", param="model", hint=hint)


def _near(name: str, known: list[str]) -> list[str]:
    """Known names like ``name``. Comparing is slow for long names and for many: only the likeliest are compared."""
    if len(name) > _COMPARED_CHARACTERS:
        return []

    def shared(other: str) -> int:
        return _alike(name, other) + _alike(reversed(name), reversed(other))

    short = [other for other in known if len(other) <= 2 * _COMPARED_CHARACTERS]
    return nearest(name, heapq.nlargest(_COMPARED_NAMES, short, key=shared))


def _alike(one: Iterable[str], other: Iterable[str]) -> int:
    """Characters that both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
