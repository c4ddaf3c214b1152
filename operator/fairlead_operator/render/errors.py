"""What keeps a model, or one of its pools, from being rendered."""

from dataclasses import dataclass

from fairlead.api import Reason


@dataclass(frozen=True, slots=True)
class RenderProblem:
    """Of ``pool``, or of the whole model when that is None. ``field`` is a path such as ``spec.pools[main].accelerator``."""

    reason: Reason
    field: str
    message: str
    fix: str
    pool: str | None = None

    @property
    def message_with_fix(self) -> str:
        """For a condition's message."""
        return f"{self.field}: {self.message}" + (f"; {self.fix}" if self.fix else "")
