"""Wrong usage, as the parser of the command line finds it, in one line."""

from cyclopts import CycloptsError, MissingArgumentError, UnknownCommandError, UnusedCliTokensError


def usage_message(error: CycloptsError, program: str) -> str:
    """Returns what is wrong with a command line, and where to look.

    program: as it is called, such as ``fairlead``.
    """
    verb = " ".join([program, *(error.command_chain or ())])
    return f"{_reason(error)} (see {verb} --help)"


def _reason(error: CycloptsError) -> str:
    argument = error.argument
    if isinstance(error, MissingArgumentError) and argument is not None:
        if error.keyword is not None:
            return f"{error.keyword} needs a value"
        name = argument.names[0]
        return f"{name.lstrip('-').upper() if argument.field_info.is_positional else name} is missing"
    if isinstance(error, UnusedCliTokensError):
        return f"unexpected words: {' '.join(error.unused_tokens or ())}"
    text = str(error).rstrip(".")
    if isinstance(error, UnknownCommandError) and "Did you mean" in text:
        text = text.partition(" Available commands")[0]
    return text[:1].lower() + text[1:]
