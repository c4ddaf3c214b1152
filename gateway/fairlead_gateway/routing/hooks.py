"""What a router tells of the prompts that it sends, for the index, and the words for how far an instance is followed there."""

from collections.abc import Callable
from dataclasses import dataclass

from fairlead_gateway.routing.load.shared_memory import SharedLoadTable
from fairlead_gateway.routing.request import RouteRequest


@dataclass(frozen=True, slots=True)
class DispatchHooks:
    """Hooks of a router whose model's instances tell what they hold. ``sent``: (model, prompt, instance). ``ended``: (model, prompt,
    instance, prompt tokens and cached tokens as the engine reported them, and what had been expected to be held there, as shares of
    the prompt: by the index, negative where it said nothing, and by all that was known)."""

    on_dispatch: Callable[[str, RouteRequest, str], None]
    on_finish: Callable[[str, RouteRequest, str, int | None, int | None, float, float], None]


@dataclass(frozen=True, slots=True)
class SiblingWorkers:
    """The other workers of the same gateway: what they have in flight, how a dispatch is told (model, prompt, instance), how a
    death (fingerprint of a body, instance, since when it had it, time), and how that such a body was answered (fingerprint, time)."""

    loads: SharedLoadTable
    report_dispatch: Callable[[str, RouteRequest, str], None]
    report_crash: Callable[[bytes, str, float, float], None]
    report_cleared: Callable[[bytes, float], None]
