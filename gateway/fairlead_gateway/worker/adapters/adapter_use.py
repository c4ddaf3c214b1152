"""The use of a LoRA adapter by a request, as `explain` shows it."""

from fairlead.units import format_duration
from fairlead_gateway.adapters.placement import AdapterPlacement


class AdapterUse:
    """The adapter of a request: where it may be served, and how long the request waited for it.

    load_seconds: how long the request waited for a load; None until that has ended, and if the
        adapter was loaded already.
    download_seconds: the part of it in which the adapter was downloaded.
    """

    __slots__ = ("download_seconds", "load_seconds", "name", "placement")

    def __init__(self, name: str, placement: AdapterPlacement) -> None:
        self.name = name
        self.placement = placement
        self.load_seconds: float | None = None
        self.download_seconds = 0.0

    def describe(self) -> str:
        """Returns it as the beginning of a sentence."""
        if self.load_seconds is not None and self.download_seconds > 0.0:
            downloaded = format_duration(self.download_seconds)
            rest = format_duration(max(0.0, self.load_seconds - self.download_seconds))
            return f"adapter {self.name} cold, downloaded in {downloaded}, loaded in {rest}"
        if self.load_seconds is not None:
            return f"adapter {self.name} cold, loaded in {format_duration(self.load_seconds)}"
        if self.placement.rule == "warm":
            return f"adapter {self.name} {self.placement.reason}"
        return f"adapter {self.name} cold: {self.placement.reason}"
