"""How the index learns what prompts are in tokens: a setting, in words."""

from enum import StrEnum

from fairlead.errors import SettingsError


class Links(StrEnum):
    """``engine``: its ``/tokenize`` is asked. ``events``: from what engines store between a prompt's dispatch and its end.
    ``auto``: asked, and from events where that is refused. ``off``: no index."""

    AUTO = "auto"
    ENGINE = "engine"
    EVENTS = "events"
    OFF = "off"

    @property
    def asks(self) -> bool:
        """Whether engines are asked."""
        return self in (Links.AUTO, Links.ENGINE)

    @property
    def fits(self) -> bool:
        """Whether events are fitted to prompts."""
        return self in (Links.AUTO, Links.EVENTS)

    @property
    def words(self) -> str:
        """For people."""
        return _WORDS[self]


_WORDS = {
    Links.AUTO: "engines are asked for tokens, and events are fitted to prompts where they do not tell them",
    Links.ENGINE: "engines are asked for tokens",
    Links.EVENTS: "events are fitted to prompts",
    Links.OFF: "off",
}


def links_of(text: str | None) -> Links:
    """The setting as it was written. Raises SettingsError."""
    try:
        return Links(text or Links.AUTO)
    except ValueError:
        raise SettingsError(
            f"{text!r} is no way to learn links", field="FAIRLEAD_LINKS", hint="auto, engine, events or off"
        ) from None
