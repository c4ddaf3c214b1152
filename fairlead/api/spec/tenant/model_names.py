"""The names of models in a ModelTenant."""

from typing import Annotated, Final

from pydantic import AfterValidator, Field

from fairlead.api.value_types import pattern_check
from fairlead.names import DNS_LABEL_PATTERN

_CHARACTERS: Final = "[A-Za-z0-9._/:@+-]{1,253}"
_MODEL_PATTERN: Final = rf"^{DNS_LABEL_PATTERN.pattern}/{_CHARACTERS}$"
_MODELS_PATTERN: Final = rf"^{DNS_LABEL_PATTERN.pattern}/(\*|{_CHARACTERS})$"
_MAX_LENGTH: Final = 317


_IS_NO_NAME: Final = "is not the name of a model"
ModelKey = Annotated[
    str,
    AfterValidator(
        pattern_check(_MODEL_PATTERN, _IS_NO_NAME, "write it as namespace/name, like chat/llama-70b", _MAX_LENGTH)
    ),
    Field(json_schema_extra={"pattern": _MODEL_PATTERN, "maxLength": _MAX_LENGTH}),
]
"""A model, or a LoRA adapter."""
ModelsEntry = Annotated[
    str,
    AfterValidator(
        pattern_check(
            _MODELS_PATTERN,
            _IS_NO_NAME,
            "write it as namespace/name, or namespace/* for all of a namespace",
            _MAX_LENGTH,
        )
    ),
    Field(json_schema_extra={"pattern": _MODELS_PATTERN, "maxLength": _MAX_LENGTH}),
]
"""A model, a LoRA adapter, or all models of a namespace."""
