"""The root of all error trees.

    FairleadError
    ├── BadInput            invalid input; names the field and the fix
    │   ├── ManifestError   a manifest or fleet file, with file and line
    │   └── SettingsError   an environment variable or a command-line flag
    └── Unavailable         a dependency is away; `hint` may say what still works

The error trees of the components extend these classes. No error text contains a prompt or a key.
"""

from dataclasses import dataclass


class FairleadError(Exception):
    """An error that Fairlead can explain. `hint` says what to do about it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class BadInput(FairleadError):
    """An invalid value from outside.

    field: its path, such as `spec.pools[0].acceleratorClassName`.
    """

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field = field


def first_line(error: object, max_chars: int = 120) -> str:
    return (str(error).splitlines() or [""])[0][:max_chars]


def plain_text(text: str) -> str:
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)


@dataclass(frozen=True, slots=True)
class FileProblem:
    """A problem found in a file: the place, what is wrong and how to fix it. `line` starts at 1."""

    file: str
    line: int
    field: str
    message: str
    fix: str

    def __str__(self) -> str:
        text = f"{self.file}:{self.line}: {self.field}: {self.message}"
        return plain_text(text + (f"\n    fix: {self.fix}" if self.fix else ""))


class ManifestError(BadInput):
    """An unusable file, with all problems found in it."""

    def __init__(self, problems: tuple[FileProblem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class SettingsError(BadInput):
    """An invalid environment variable or command-line flag."""


class Unavailable(FairleadError):
    """A dependency of Fairlead is away or fails. `hint` may say what still works."""
