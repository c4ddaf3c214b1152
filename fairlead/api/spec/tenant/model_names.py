"""The names of models in a ModelTenant."""

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from fairlead.api.strict_model import field_error
from fairlead.names import DNS_LABEL_PATTERN

_CHARACTERS: Final = "[A-Za-z0-9._/:@+-]{1,253}"
_MODEL_PATTERN: Final = rf"^{DNS_LABEL_PATTERN.pattern}/{_CHARACTERS}$"
_MODELS_PATTERN: Final = rf"^{DNS_LABEL_PATTERN.pattern}/(\*|{_CHARACTERS})$"
_MAX_LENGTH: Final = 317


def _check_model(pattern: str, fix: str) -> AfterValidator:
    compiled = re.compile(pattern.strip("^$"))

    def check(text: str) -> str:
        if len(text) > _MAX_LENGTH or not compiled.fullmatch(text):
            raise field_error(f'"{text:.70}" is not the name of a model', fix)
        return text

    return AfterValidator(check)


ModelKey = Annotated[
    str,
    _check_model(_MODEL_PATTERN, "write it as namespace/name, like chat/llama-70b"),
    Field(json_schema_extra={"pattern": _MODEL_PATTERN, "maxLength": _MAX_LENGTH}),
]
"""A model, or a LoRA adapter."""
ModelsEntry = Annotated[
    str,
    _check_model(_MODELS_PATTERN, "write it as namespace/name, or namespace/* for all of a namespace"),
    Field(json_schema_extra={"pattern": _MODELS_PATTERN, "maxLength": _MAX_LENGTH}),
]
"""A model, a LoRA adapter, or all models of a namespace."""
