"""The models that one engine serves: the base model and its loaded LoRA adapters."""

import re
from typing import Any

from fairlead_sim.generation.requests import GenerationRequest, LoraAdapter
from fairlead_sim.http.errors import InvalidAdapterRequest, ResourceNotFound
from fairlead_sim.http.fields import RequestFields
from fairlead_sim.runtime.settings import EngineSettings


class ServedModels:
    """The models of ``/v1/models``.

    Adapter files are never read: every path loads, except those in ``missing_adapters``.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._names = settings.served_names
        self._root = settings.model
        self._max_model_len = settings.max_model_len
        self._missing = settings.missing_adapters
        self._adapters: dict[str, LoraAdapter] = {}
        self._max_loaded = settings.max_loaded_adapters
        self._loading: dict[str, str] = {}
        self._loads = 0
        for name, path in settings.adapters:
            self._add(name, path)

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    @property
    def adapters(self) -> tuple[LoraAdapter, ...]:
        return tuple(self._adapters.values())

    def adapter_number(self, name: str) -> int | None:
        """Returns the number of an adapter in KV events; None if it is not loaded."""
        adapter = self._adapters.get(name)
        return None if adapter is None else adapter.number

    def resolve(self, request: GenerationRequest) -> None:
        """Sets the adapter and the response's model name of a request. Raises ResourceNotFound."""
        if not request.model or request.model in self._names:
            request.model = self._names[0]
            return
        adapter = self._adapters.get(request.model)
        if adapter is None:
            aliases = ", ".join(self._names)
            raise ResourceNotFound(
                f"The model `{request.model}` does not exist. Valid aliases: {aliases}.", param="model"
            )
        request.adapter = adapter

    def begin_load(self, fields: RequestFields) -> str:
        """Begins to load an adapter and returns its name; requests may use it after `end_load`.

        Raises MalformedRequest, InvalidAdapterRequest or ResourceNotFound.
        """
        name, path = _required_text(fields, "lora_name"), _required_text(fields, "lora_path")
        fields.check()
        if name in self._adapters and not fields.flag("load_inplace"):
            raise InvalidAdapterRequest(
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
                "set 'load_inplace' to True."
            )
        if path in self._missing:
            raise ResourceNotFound(f"Loading lora {name} failed: No adapter found for <path>")
        kept = self._adapters.keys() | self._loading.keys()
        if self._max_loaded is not None and name not in kept and len(kept) >= self._max_loaded:
            raise InvalidAdapterRequest(f"Loading lora {name} failed: {self._max_loaded} adapters are loaded already.")
        self._loading[name] = path
        return name

    def end_load(self, name: str) -> str:
        """Ends the load of an adapter and returns the engine's message."""
        path = self._loading.pop(name, None)
        if path is not None:
            self._add(name, path)
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, fields: RequestFields) -> str:
        """Unloads an adapter and returns the engine's message.

        Raises MalformedRequest or ResourceNotFound.
        """
        name = _required_text(fields, "lora_name")
        fields.check()
        if self._adapters.pop(name, None) is None:
            raise ResourceNotFound(f"The lora adapter '{name}' cannot be found.")
        return f"Success: LoRA adapter '{name}' removed successfully."

    def model_cards(self, created: int, ids: "list[str]") -> list[dict[str, Any]]:
        """Returns the entries of ``/v1/models``; ``ids`` are new 16-hex ids, one per entry."""
        cards = [
            _model_card(name, self._root, None, self._max_model_len, created, each)
            for name, each in zip(self._names, ids, strict=False)
        ]
        for adapter, each in zip(self._adapters.values(), ids[len(cards) :], strict=True):
            cards.append(_model_card(adapter.name, adapter.path, self._names[0], None, created, each))
        return cards

    def _add(self, name: str, path: str) -> None:
        self._loads += 1
        self._adapters[name] = LoraAdapter(name, path, self._loads)


def parse_adapter(text: str) -> tuple[str, str]:
    """Returns name and path of ``NAME=PATH``. Raises ValueError for other texts."""
    name, equals, path = text.partition("=")
    if not (equals and path and re.fullmatch(r"\S+", name)):
        raise ValueError(f"{text!r} is not NAME=PATH")
    return name, path


def _required_text(fields: RequestFields, name: str) -> str:
    if name not in fields.body:
        fields.add_missing(name)
    return fields.text(name) or ""


def _model_card(
    name: str, root: str, parent: str | None, max_model_len: int | None, created: int, card_id: str
) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": root,
        "parent": parent,
        "max_model_len": max_model_len,
        "permission": [
            {
                "id": f"modelperm-{card_id}",
                "object": "model_permission",
                "created": created,
                "allow_create_engine": False,
                "allow_sampling": True,
                "allow_logprobs": True,
                "allow_search_indices": False,
                "allow_view": True,
                "allow_fine_tuning": False,
                "organization": "*",
                "group": None,
                "is_blocking": False,
            }
        ],
    }
