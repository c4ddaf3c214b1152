"""Problems that prevent the rendering of a model or pool."""

from dataclasses import dataclass

from fairlead.api.conditions import Reason


@dataclass(frozen=True, slots=True)
class RenderProblem:
    """A problem of `pool`, or of the whole model if None.

    field: path such as `spec.pools[main].acceleratorClassName`.
    """

    reason: Reason
    field: str
    message: str
    fix: str
    pool: str | None = None

    @property
    def message_with_fix(self) -> str:
        return f"{self.field}: {self.message}" + (f"; {self.fix}" if self.fix else "")
