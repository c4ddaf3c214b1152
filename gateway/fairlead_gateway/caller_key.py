"""The key under which anything is counted per caller: queued requests, service, faults, retries.

Today a caller is the name of an API key. Callers of a gateway without keys cannot be distinguished,
and count as one. Every count takes its key from here, so that another identity changes one module.
"""

from typing import Final, NewType, cast

CallerKey = NewType("CallerKey", str)
"""One caller. Why no class: the key is looked up for each request, and costs nothing this way."""

ANONYMOUS: Final = CallerKey("")
"""All callers of a gateway that asks for no API key."""


def caller_key(api_key_name: str | None) -> CallerKey:
    """Returns the key of a caller.

    api_key_name: None if the gateway asks for no API key.
    """
    return ANONYMOUS if api_key_name is None else cast(CallerKey, api_key_name)  # without a call at run time
