"""How the index learns what prompts are in tokens: a setting, in words."""

from enum import StrEnum

from fairlead.errors import SettingsError


class Links(StrEnum):
    """``engine``: its ``/tokenize`` is asked; token ids need no question. ``off``: there is no index here."""

    ENGINE = "engine"
    OFF = "off"

    @property
    def words(self) -> str:
        """For people."""
        return "engines are asked for the tokens of prompts" if self is Links.ENGINE else "off"


def links_of(text: str | None) -> Links:
    """The setting as it was written. Raises SettingsError."""
    try:
        return Links(text or Links.ENGINE)
    except ValueError:
        raise SettingsError(
            f"{text!r} is no way to learn links", field="FAIRLEAD_LINKS", hint="engine or off"
        ) from None
