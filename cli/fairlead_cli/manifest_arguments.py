"""File arguments as kubectl takes them: plain words, values of ``-f``, or both; ``-`` is standard
input.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from fairlead.errors import BadInput
from fairlead.manifests.files import STDIN_PATH
from fairlead.names import closest_matches


def collect_paths(
    command: Callable[..., Any], arguments: Sequence[str], option_values: Sequence[str] | None
) -> tuple[str, ...]:
    """Returns all paths in order. Raises BadInput for a word that looks like an option of
    ``command``.

    Why: the parser passes words with a leading hyphen as files, because it would refuse ``-``
    otherwise.
    """
    for argument in arguments:
        if argument.startswith("-") and argument != STDIN_PATH:
            suggestions = closest_matches(argument, _options(command), count=1)
            hint = (
                f"did you mean {suggestions[0]}?"
                if suggestions
                else f"fairlead {command.__name__} --help lists the options"
            )
            raise BadInput(f"unknown option: {argument}", field=argument, hint=hint)
    return (*arguments, *(option_values or ()))


def _options(command: Callable[..., Any]) -> list[str]:
    names: list[str] = []
    for parameter in inspect.signature(command).parameters.values():
        if is_dataclass(parameter.default):
            names += [field.name for field in fields(parameter.default)]
        elif parameter.kind is parameter.KEYWORD_ONLY:
            names.append(parameter.name)
    return [f"--{name.replace('_', '-')}" for name in names]
