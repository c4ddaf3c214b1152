"""Finds the model that a client's name means.

A client writes `namespace/name`, or the bare name if it is unique.

Replaces the model's name for engines that serve it under another one.

In a request, the engine's name is set like any other field (`json_edit`). In a response, the bytes
`"model":"NAME"` are replaced wherever they occur, with or without a space. Inside a JSON string
quotes are escaped, so these bytes are always a field that names the model. Every other byte stays,
and nothing is parsed. An engine's name has no characters that need escapes (`ServedName`).
"""

import heapq
from collections import Counter
from collections.abc import Iterable
from itertools import takewhile
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlencode

import msgspec

from fairlead.adapters.model import LoraAdapter
from fairlead.errors import BadInput
from fairlead.fleet.model import Fleet, Model, RequestPolicy, StreamResume, UnknownFields
from fairlead.names import closest_matches, normalize_model_name
from fairlead_gateway.errors import BadRequest, UnknownModel
from fairlead_gateway.openai.field_policy import FETCHING_ENGINES
from fairlead_gateway.openai.json_edit import set_members

_MAX_COMPARED_CHARACTERS = 64
_MAX_COMPARED_NAMES = 40

_KEYS: Final = (b'"model":', b'"model": ')
_MAX_PLACES: Final = 16_384
"""Limit: places in one read where a name or an id is replaced by a longer one."""


def resolve_model(name: str, fleet: Fleet) -> Model:
    """Returns the model that a client's name means.

    Raises UnknownModel, or BadRequest if no model can have the name.
    """
    return resolve_model_entry(name, fleet).model


class ModelEntry:
    """A model or one of its adapters, with copies of what each request reads of it.

    key, model: of an adapter, those of its base.
    name: by which engines know it.
    adapter: None for the model itself.
    rules: what its engines take of requests.
    is_external: others run it.
    passes_unknown_fields: fields that are listed as safe (`schemas`) need no look at its rules.
    canary_weight: as in `Model`.
    allowed_headers: further headers of clients that its engines get.
    max_attempts: as in `Model`.
    resumes: its streams go on at another instance when theirs ends.

    Why: the module of `Model` is not compiled. Each attribute that is read there costs 140
    instructions.
    """

    __slots__ = (
        "adapter",
        "allowed_headers",
        "canary_weight",
        "is_external",
        "key",
        "max_attempts",
        "model",
        "name",
        "name_text",
        "passes_unknown_fields",
        "resumes",
        "rules",
    )

    def __init__(self, key: str, model: Model, adapter: LoraAdapter | None = None) -> None:
        self.key = key
        self.model = model
        self.adapter = adapter
        self.name: str = model.name if adapter is None else adapter.name
        self.name_text: bytes = msgspec.json.encode(self.name)
        self.rules: RequestPolicy = model.requests
        self.is_external: bool = model.leaves_cluster
        is_open = self.rules.unknown_fields is UnknownFields.PASS and not self.is_external
        self.passes_unknown_fields: bool = is_open and not self.rules.engines & FETCHING_ENGINES
        self.allowed_headers: frozenset[bytes] = frozenset(name.encode() for name in self.rules.allowed_headers)
        self.canary_weight: int = model.canary_weight
        self.max_attempts: int | None = model.routing.max_attempts
        self.resumes: bool = model.routing.resume is StreamResume.AUTO


def client_names(fleet: Fleet) -> dict[str, ModelEntry]:
    """Returns all models and adapters by the names that clients may write.

    Why: a request looks its model up here, and does not look at every model of the fleet.
    """
    keys: dict[str, str | None] = {}
    models = {key: model for key, model in fleet.models.items() if not model.adapters_only}
    for key, model in models.items():
        for name in dict.fromkeys((*model.served_names, *(() if model.shadowed else (model.name,)))):
            keys[name] = None if name in keys else key
    entries = {key: ModelEntry(key, model) for key, model in models.items()}
    named = {name: entries[key] for name, key in keys.items() if key is not None} | entries
    return _adapter_entries(fleet) | named


def adapter_names(fleet: Fleet) -> dict[str, tuple[Model, LoraAdapter]]:
    """Returns all adapters by their names without a namespace, with their bases; a name that
    several have, or a model has, means none of them.
    """
    counts = Counter(
        name for model in fleet.models.values() for adapter in model.adapters for name in adapter.bare_names
    )
    models = public_model_names(fleet) if counts else {}
    return {
        name: (model, adapter)
        for model in fleet.models.values()
        for adapter in model.adapters
        for name in adapter.bare_names
        if counts[name] == 1 and name not in models
    }


def _adapter_entries(fleet: Fleet) -> dict[str, ModelEntry]:
    """Returns all adapters by the names that clients may write, `namespace/name` among them."""
    found: dict[str, ModelEntry] = {}
    bare = adapter_names(fleet)
    for key, model in fleet.models.items():
        for adapter in model.adapters:
            entry = found[f"{model.namespace}/{adapter.name}"] = ModelEntry(key, model, adapter)
            for name in adapter.bare_names:
                if name in bare:
                    found[name] = entry
    return found


def resolve_model_entry(name: str, fleet: Fleet, names: dict[str, ModelEntry] | None = None) -> ModelEntry:
    """Returns the model that a client's name means. Raises as `resolve_model`.

    names: the fleet's `client_names`, if they are known.
    """
    entry = None if names is None else names.get(name)
    if entry is not None:
        return entry
    if names is None:
        entry = _find_entry(name, fleet)
    if entry is None:
        try:
            normal = normalize_model_name(name)
        except BadInput as error:
            raise BadRequest(f"model: {error.message}", param="model", code="invalid_value") from None
        entry = _find_entry(normal, fleet) if names is None else names.get(normal)
    if entry is None:
        raise _unknown_model(name, fleet)
    return entry


def _find_entry(name: str, fleet: Fleet) -> ModelEntry | None:
    key = _resolve_key(name, fleet)
    return _adapter_entries(fleet).get(name) if key is None else ModelEntry(key, fleet.models[key])


def _resolve_key(name: str, fleet: Fleet) -> str | None:
    """Returns the key of the model with this name; None if there is none, or several.

    Why: `Fleet.resolve`, which does the same, is not compiled.
    """
    models = fleet.models
    if name in models and not models[name].adapters_only:
        return name
    only: str | None = None
    for key, model in models.items():
        if model.adapters_only:
            continue
        if (model.name == name and not model.shadowed) or name in model.served_names:
            if only is not None:
                return None
            only = key
    return only


def public_model_names(fleet: Fleet) -> dict[str, Model]:
    """Returns the models by the names for clients: unique served names, and the bare name if it is
    unique, else `namespace/name`.
    """
    models = {key: model for key, model in fleet.models.items() if not model.adapters_only}
    counts = Counter(model.name for model in models.values() if not model.shadowed)
    counts.update(name for model in models.values() for name in model.served_names)
    found: dict[str, Model] = {}
    for key, model in sorted(models.items()):
        found[model.name if counts[model.name] == 1 and not model.shadowed else key] = model
        found.update((name, model) for name in model.served_names if counts[name] == 1)
    return found


class HiddenKeys(NamedTuple):
    """Keys of models and routes that a list leaves out."""

    models: frozenset[str] = frozenset()
    routes: frozenset[str] = frozenset()


NOTHING_HIDDEN: Final = HiddenKeys()


def public_names(fleet: Fleet, hidden: HiddenKeys = NOTHING_HIDDEN) -> dict[str, str]:
    """Returns the namespaces of models and routes by the names for clients."""
    models = public_model_names(fleet)
    found = {name: model.namespace for name, model in models.items() if model.key not in hidden.models}
    for key, route in fleet.routes.items():
        if key not in hidden.routes:
            found.update((name, route.namespace) for name in route.names or (key,) if name not in models)
    return found


def _unknown_model(name: str, fleet: Fleet) -> UnknownModel:
    models = {key: model for key, model in fleet.models.items() if not model.adapters_only}
    clashing = sorted(key for key, model in models.items() if name == model.name or name in model.served_names)
    if len(clashing) > 1:
        hint = f"several namespaces have it; write one of: {', '.join(clashing[:5])}"
        return UnknownModel("model: the name is not unique", param="model", hint=hint)
    similar = _similar_names(name, [*public_names(fleet), *models])
    hint = f"did you mean: {', '.join(similar)}?" if similar else "GET /v1/models lists what is served"
    return UnknownModel("model: no model of this name is served here", param="model", hint=hint)


def _similar_names(name: str, names: list[str]) -> list[str]:
    """Returns known names that are similar to `name`.

    Only the most likely are compared, since comparing is slow for long and for many names.
    """
    if len(name) > _MAX_COMPARED_CHARACTERS:
        return []

    def similarity(other: str) -> int:
        return _common_prefix_length(name, other) + _common_prefix_length(reversed(name), reversed(other))

    short = [other for other in names if len(other) <= 2 * _MAX_COMPARED_CHARACTERS]
    return closest_matches(name, heapq.nlargest(_MAX_COMPARED_NAMES, short, key=similarity))


def _common_prefix_length(left: Iterable[str], right: Iterable[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def body_with_model(name: str, body: bytes) -> bytes:
    """Returns the body of a request for `name`; an empty body stays empty."""
    return set_members(body, {"model": msgspec.json.encode(name)}) if body else body


def target_with_model(name: str, target: str) -> str:
    """Returns the target of a request with `name` as the value of `model` in its query, if any."""
    path, mark, query = target.partition("?")
    if not mark:
        return target
    fields = [(key, name if key == "model" else value) for key, value in parse_qsl(query, keep_blank_values=True)]
    return f"{path}?{urlencode(fields)}"


class ServedNameRewriter:
    """A rewriter that replaces the engine's name for the model by the client's, in one response."""

    def __init__(self, engine_name: str, client_name: str) -> None:
        engine_text, client_text = msgspec.json.encode(engine_name), msgspec.json.encode(client_name)
        self._pairs = [(key + engine_text, key + client_text) for key in _KEYS]
        self._longest = max([len(key_value) for key_value, _ in self._pairs])
        self._pending = b""

    def rewrite(self, data: bytes) -> bytes:
        """Returns the bytes with the client's name; no name may be cut at their ends."""
        for engine_text, client_text in self._pairs:
            data = data.replace(engine_text, client_text, _MAX_PLACES)
        return data

    def rewrite_events(self, events: list[bytes]) -> list[bytes]:
        return [self.rewrite(event) for event in events]

    def rewrite_chunks(self, chunks: list[bytes], last: bool) -> list[bytes]:
        """Returns chunks, as the network cut them, with the client's name.

        The start of a name waits for the next chunk.

        last: no chunk follows.
        """
        data = self.rewrite(self._pending + b"".join(chunks))
        keep = 0 if last else self._partial_name_length(data)
        self._pending = data[len(data) - keep :]
        complete = data[: len(data) - keep]
        return [complete] if complete else []

    def _partial_name_length(self, data: bytes) -> int:
        """Returns how many bytes at the end may be the start of a name."""
        for size in range(min(self._longest - 1, len(data)), 0, -1):
            end = data[len(data) - size :]
            for engine_text, _ in self._pairs:
                if engine_text.startswith(end):
                    return size
        return 0
