"""Room 2, model: from a body to the model that the client means, and to the body that an engine may get.

A client names a model ``namespace/name``, or by its bare name where that is unique; an engine knows the bare name only. Other
changes that are ever made to a body: the usage of a stream is asked for, which engines tell only when asked, and fields
with which engines hand over caches are cut out (``handoff``).
"""

import heapq
from collections import Counter
from collections.abc import Iterable
from itertools import takewhile

import msgspec
from msgspec import UNSET

from fairlead.errors import BadInput
from fairlead.fleet import Fleet, Model
from fairlead.limits import Limits
from fairlead.names import model_name, nearest
from fairlead_gateway.body import stream_options
from fairlead_gateway.errors import BadRequest, UnknownModel
from fairlead_gateway.fields import Chat, Common, Completion, Embedding, Generation, Other
from fairlead_gateway.handoff import without_handoff
from fairlead_gateway.splice import added, splice
from fairlead_gateway.usual import Read, read

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


class Ask:
    """A request that was understood. ``body`` goes to the engine, ``given`` is what the client sent; ``strip_usage``: the client did
    not ask for it. A passed-on one has its own ``method`` and ``target``; of what is ``opaque`` neither prompt nor answer are
    understood here. ``max_tokens`` is what the client allows the answer to be."""

    __slots__ = (
        "body",
        "end",
        "given",
        "key",
        "max_tokens",
        "method",
        "model",
        "opaque",
        "parsed",
        "session",
        "special",
        "start",
        "stream",
        "strip_usage",
        "target",
    )

    def __init__(
        self,
        read: Read,
        key: str,
        model: Model,
        body: bytes,
        *,
        given: bytes = b"",
        strip_usage: bool = False,
        method: str = "POST",
        target: str | None = None,
    ) -> None:
        self.parsed = read.fields
        self.key = key
        self.model = model
        self.body = body
        self.given = given
        self.start: int = read.start
        self.end: int = read.end
        self.stream: bool = read.stream
        self.strip_usage = strip_usage
        self.max_tokens = read.max_tokens
        self.session = read.session
        self.special: bool = read.special
        self.opaque: bool = read.opaque
        self.method = method
        self.target = target

    def messages(self) -> bytes:
        """The JSON text of a chat's messages."""
        if self.end:
            return self.given[self.start - 1 : self.end + 1]
        return bytes(self.parsed.messages) if isinstance(self.parsed, Chat) else b""

    def forget(self) -> None:
        """Let the prompt go, when nobody will be asked again."""
        self.body = self.given = b""
        self.parsed.forget()


def understand(path: str, body: bytes, fleet: Fleet, limits: Limits) -> Ask:
    """Read a request for a model. Raises BadRequest naming the field, UnknownModel naming near ones."""
    given, asked = body, read(PATHS[path], body, limits)
    if asked.may_hand_over:
        body = without_handoff(body)
    key, model = found(asked.model, fleet)
    name = model.name
    if asked.model == name and not asked.stream:
        return Ask(asked, key, model, body, given=given)
    changes: dict[str, bytes] = {}
    new: dict[str, bytes] = {}
    if asked.model != name:
        changes["model"] = msgspec.json.encode(name)
    parsed = asked.fields
    strip = False
    if asked.stream and isinstance(parsed, Generation):
        options = stream_options(parsed, limits)
        # With continuous statistics the client would see more than it asked for; its usage is read from its own events.
        strip = options is None or not (options.include_usage or options.continuous_usage_stats)
        if strip:
            own = bytes(parsed.stream_options) if options is not None and parsed.stream_options else b"{}"
            asking = splice(own, {"include_usage": b"true"})
            (new if parsed.stream_options is UNSET else changes)["stream_options"] = asking
    body = splice(body, changes) if changes else body
    return Ask(asked, key, model, added(body, new) if new else body, given=given, strip_usage=strip)


def find(name: str, fleet: Fleet) -> Model:
    """The model that a client's name means. Raises UnknownModel."""
    return found(name, fleet)[1]


def found(name: str, fleet: Fleet) -> tuple[str, Model]:
    """The model that a client's name means, behind its key. Raises UnknownModel."""
    key = _resolved(name, fleet)
    if key is None:
        try:
            key = _resolved(model_name(name), fleet)
        except BadInput as error:
            raise BadRequest(f"model: {error.message}", param="model", code="invalid_value") from None
    if key is None:
        raise _unknown(name, fleet)
    return key, fleet.models[key]


def _resolved(name: str, fleet: Fleet) -> str | None:
    """As ``Fleet.resolve``, which is not compiled."""
    models = fleet.models
    if name in models:
        return name
    only: str | None = None
    for key, model in models.items():
        if model.name == name and not model.shadowed:
            if only is not None:
                return None
            only = key
    return only


def shown_names(fleet: Fleet) -> dict[str, Model]:
    """What clients may call the models: the bare name where it is the model's own, else ``namespace/name``."""
    counts = Counter(model.name for model in fleet.models.values() if not model.shadowed)
    return {
        model.name if counts[model.name] == 1 and not model.shadowed else key: model
        for key, model in sorted(fleet.models.items())
    }


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
