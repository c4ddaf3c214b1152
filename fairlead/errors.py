"""The root of every component's error tree.

FairleadError
├── BadInput            the caller gave something wrong: names the field and the fix
│   ├── ManifestError   a manifest or fleet file, with file and line
│   └── SettingsError   an environment variable or a flag
└── Unavailable         something Fairlead needs is away; says what still works

Component trees (``gateway/.../errors.py`` and so on) hang below these. No error text ever holds a prompt or a key.
"""

from dataclasses import dataclass


class FairleadError(Exception):
    """Raised when Fairlead itself can say what went wrong; ``hint`` says what to do about it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class BadInput(FairleadError):
    """Raised when a value from outside is wrong; ``field`` is its path (``spec.pools[0].accelerator``)."""

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field = field


@dataclass(frozen=True, slots=True)
class FileProblem:
    """One finding in a file: where it is, what is wrong, how to mend it. ``line`` counts from 1."""

    file: str
    line: int
    field: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field}: {self.message}" + (f"\n    fix: {self.fix}" if self.fix else "")


class ManifestError(BadInput):
    """Raised when a file cannot be used; carries every problem found, not only the first."""

    def __init__(self, problems: tuple[FileProblem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class SettingsError(BadInput):
    """Raised when an environment variable or a command-line flag is wrong."""


class Unavailable(FairleadError):
    """Raised when something Fairlead needs is away; the message says what still works."""
