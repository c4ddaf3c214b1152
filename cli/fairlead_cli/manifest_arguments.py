"""Which files a command was given: as plain words, after ``-f`` as kubectl has it, or both; ``-`` is standard input."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from fairlead.errors import BadInput
from fairlead.manifests.loader import STDIN_PATH
from fairlead.names import closest_matches


def collect_paths(
    command: Callable[..., Any], arguments: Sequence[str], option_values: Sequence[str] | None
) -> tuple[str, ...]:
    """All of them in the order given. Raises BadInput for a word that was meant as an option of ``command``.

    The parser hands words with a leading hyphen over as files, since otherwise it would refuse ``-``.
    """
    for word in arguments:
        if word.startswith("-") and word != STDIN_PATH:
            close = closest_matches(word, _options(command), count=1)
            hint = f"did you mean {close[0]}?" if close else f"fairlead {command.__name__} --help lists the options"
            raise BadInput(f"unknown option: {word}", field=word, hint=hint)
    return (*arguments, *(option_values or ()))


def _options(command: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(command).parameters.values()
    return [f"--{one.name.replace('_', '-')}" for one in parameters if one.kind is one.KEYWORD_ONLY]
