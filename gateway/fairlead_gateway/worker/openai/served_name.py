"""Engines that call a model by another name than its own: that name goes into what they are asked, and comes out of their answers.

Only a request whose engine has such a name comes here. Into the request it is spliced, as any field that must change. In the
answer the bytes ``"model":"NAME"`` are looked for, with or without a space, wherever they stand: inside a string of JSON quotes are
escaped, so that they can only be a field that names the model, of a whole answer, of an event, or of an object within one. Every
other byte stays, and nothing is parsed. What an engine calls a model is text without anything to escape (``SERVED_NAME``).
"""

from typing import Final
from urllib.parse import parse_qsl, urlencode

import msgspec

from fairlead_gateway.worker.openai.json_edit import set_members

_KEYS: Final = (b'"model":', b'"model": ')


def body_with_model(name: str, body: bytes) -> bytes:
    """A request's body that asks for ``name``; one that is empty stays so."""
    return set_members(body, {"model": msgspec.json.encode(name)}) if body else body


def target_with_model(name: str, target: str) -> str:
    """A request's target whose ``?model=`` asks for ``name``."""
    path, mark, query = target.partition("?")
    if not mark:
        return target
    fields = [(key, name if key == "model" else value) for key, value in parse_qsl(query, keep_blank_values=True)]
    return f"{path}?{urlencode(fields)}"


class ServedNameRewriter:
    """One answer in which the engine's name for the model becomes the client's."""

    def __init__(self, engine_name: str, client_name: str) -> None:
        old, new = msgspec.json.encode(engine_name), msgspec.json.encode(client_name)
        self._pairs = [(key + old, key + new) for key in _KEYS]
        self._longest = max([len(found) for found, _ in self._pairs])
        self._pending = b""

    def rewrite(self, data: bytes) -> bytes:
        """Bytes in which no name is cut."""
        for found, put in self._pairs:
            data = data.replace(found, put)
        return data

    def rewrite_events(self, events: list[bytes]) -> list[bytes]:
        """Whole events."""
        return [self.rewrite(event) for event in events]

    def rewrite_chunks(self, chunks: list[bytes], last: bool) -> list[bytes]:
        """Pieces as the network cut them; the beginning of a name waits for the next one, which ``last`` says not to come."""
        data = self.rewrite(self._pending + b"".join(chunks))
        keep = 0 if last else self._partial_name_length(data)
        self._pending = data[len(data) - keep :]
        passed = data[: len(data) - keep]
        return [passed] if passed else []

    def _partial_name_length(self, data: bytes) -> int:
        """How many bytes at the end may be the beginning of a name."""
        for size in range(min(self._longest - 1, len(data)), 0, -1):
            end = data[len(data) - size :]
            for found, _ in self._pairs:
                if found.startswith(end):
                    return size
        return 0
