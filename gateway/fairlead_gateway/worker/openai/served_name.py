"""Replaces the model's name for engines that serve it under another one.

In a request, the engine's name is set like any other field (`json_edit`). In a response, the bytes
`"model":"NAME"` are replaced wherever they occur, with or without a space. Inside a JSON string
quotes are escaped, so these bytes are always a field that names the model. Every other byte stays,
and nothing is parsed. An engine's name has no characters that need escapes (`ServedName`).
"""

from typing import Final
from urllib.parse import parse_qsl, urlencode

import msgspec

from fairlead_gateway.worker.openai.json_edit import set_members

_KEYS: Final = (b'"model":', b'"model": ')


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
            data = data.replace(engine_text, client_text)
        return data

    def rewrite_events(self, events: list[bytes]) -> list[bytes]:
        """Returns whole events with the client's name."""
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
