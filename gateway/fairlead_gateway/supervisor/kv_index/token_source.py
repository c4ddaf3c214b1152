"""The setting that says how the KV-cache index learns the tokens of prompts."""

from enum import StrEnum

from fairlead.errors import SettingsError


class TokenSource(StrEnum):
    """The source of prompts' tokens.

    - ENGINE: the `/tokenize` endpoint of engines. Prompts of token ids need no query.
    - PROCESS: a process of the gateway tokenizes text prompts of models whose tokenizer is on this
      machine. Engines are queried for all other prompts.
    - OFF: the gateway has no KV-cache index.
    """

    ENGINE = "engine"
    PROCESS = "process"
    OFF = "off"


ENGINE_DESCRIPTION = "engines are queried for the tokens of prompts"


def parse_token_source(text: str | None, tokenizers: str | None = None) -> TokenSource:
    """Returns the source that the setting names; ENGINE if it is empty.

    tokenizers: the folder of tokenizers.

    Raises SettingsError for an unknown source, and for PROCESS without a folder.
    """
    try:
        source = TokenSource(text or TokenSource.ENGINE)
    except ValueError:
        raise SettingsError(
            f"{text!r} is not a source of tokens", field="FAIRLEAD_LINKS", hint="use engine, process or off"
        ) from None
    if source is TokenSource.PROCESS and not tokenizers:
        raise SettingsError(
            "prompts cannot be tokenized by the gateway without a folder of tokenizers", field="FAIRLEAD_TOKENIZERS"
        )
    return source
