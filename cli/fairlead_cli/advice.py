"""The advice that ``status`` ends with, for a stack and for a cluster."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Advice:
    """The next thing to do, and whether something is wrong."""

    is_problem: bool
    text: str
