"""The table of dialects, by path, with the decoders of their bodies."""

import re
from typing import Any, Final

import msgspec

from fairlead_gateway.dialects import passed_on
from fairlead_gateway.dialects.chat import CHAT
from fairlead_gateway.dialects.completions import COMPLETIONS
from fairlead_gateway.dialects.dialect import Dialect
from fairlead_gateway.dialects.embeddings import EMBEDDINGS
from fairlead_gateway.dialects.messages import MESSAGES
from fairlead_gateway.dialects.responses import RESPONSES
from fairlead_gateway.dialects.schemas import CommonFields, OptionalInt, OptionalNumber

ROUTED: Final[tuple[Dialect, ...]] = (CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES)
"""The dialects whose requests are routed by their prompts."""
OWN: Final[tuple[Dialect, ...]] = (*ROUTED, passed_on.TOKENIZE, passed_on.SCORES)
"""The dialects that every model is asked in, whatever its engine."""
_ENTRIES: Final = (
    *OWN,
    passed_on.CHAT_BATCH,
    passed_on.COUNT_TOKENS,
    passed_on.POOLING,
    passed_on.TOKENIZE_V1,
)
DIALECTS: Final[dict[str, Dialect]] = {path: dialect for dialect in _ENTRIES for path in dialect.paths}
BODY_TYPES: Final[dict[str, type[CommonFields]]] = {
    path: dialect.body_type for dialect in OWN for path in dialect.paths
}
"""The types of bodies by path, for the paths that every model is asked on."""
BY_TYPE: Final[dict[type[CommonFields], Dialect]] = {dialect.body_type: dialect for dialect in ROUTED}
_STORED_RESPONSE: Final = re.compile(r"/v1/responses/[A-Za-z0-9_-]{1,256}(?:/cancel|/input_items)?")

_TYPES: Final[tuple[type[CommonFields], ...]] = (*BY_TYPE, passed_on.GenericRequest)
BODY_DECODERS: dict[type[CommonFields], "msgspec.json.Decoder[Any]"] = {
    kind: msgspec.json.Decoder(kind) for kind in _TYPES
}
LISTED_KINDS: dict[type[CommonFields], type[CommonFields]] = {
    dialect.body_type: dialect.listed_type for dialect in ROUTED if dialect.listed_type is not None
}
LISTED_DECODERS: dict[type[CommonFields], "msgspec.json.Decoder[Any]"] = {
    kind: msgspec.json.Decoder(listed) for kind, listed in LISTED_KINDS.items()
}
_SCALARS: Final[dict[Any, type]] = {OptionalInt: int, OptionalNumber: float, bool | None: bool}
SCALAR_FIELDS: dict[type[CommonFields], dict[str, type]] = {
    kind: {field.name: _SCALARS[field.type] for field in msgspec.structs.fields(kind) if field.type in _SCALARS}
    for kind in _TYPES
}
"""The fields of each kind that are numbers or truth values, by name."""


def dialect_of(path: str) -> Dialect:
    """Returns the dialect of a path; `OTHER` for one that the table does not have."""
    found = DIALECTS.get(path)
    if found is not None:
        return found
    if _STORED_RESPONSE.fullmatch(path) is not None:
        return passed_on.STORED_RESPONSE
    return passed_on.OTHER_MESSAGES if path.startswith("/v1/messages/") else passed_on.OTHER
