"""How the index learns what prompts are in tokens: a setting, in words."""

from enum import StrEnum

from fairlead.errors import SettingsError


class TokenSource(StrEnum):
    """``engine``: its ``/tokenize`` is asked; token ids need no question. ``process``: prompts of text are tokenized here, where the
    model's tokenizer lies on this machine, and engines are asked for the rest. ``off``: there is no index here."""

    ENGINE = "engine"
    PROCESS = "process"
    OFF = "off"


ENGINE_DESCRIPTION = "engines are asked for the tokens of prompts"


def parse_token_source(text: str | None, tokenizers: str | None = None) -> TokenSource:
    """The setting as it was written; ``tokenizers`` is the folder of tokenizers. Raises SettingsError."""
    try:
        found = TokenSource(text or TokenSource.ENGINE)
    except ValueError:
        raise SettingsError(
            f"{text!r} is no way to learn links", field="FAIRLEAD_LINKS", hint="engine, process or off"
        ) from None
    if found is TokenSource.PROCESS and not tokenizers:
        raise SettingsError(
            "prompts cannot be tokenized here without a folder of tokenizers", field="FAIRLEAD_TOKENIZERS"
        )
    return found
