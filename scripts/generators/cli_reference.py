"""docs/reference/cli: every verb with its arguments, from the functions themselves."""

import inspect
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from itertools import groupby
from typing import Any

from cyclopts import App

from fairlead_cli.app import VERBS, Verb, build_app
from fairlead_cli.examples import EXAMPLES, example_lines

_KINDS = {"str": "TEXT", "int": "N", "float": "X", "pathlib.Path": "PATH"}


def cli_pages(note: str) -> dict[str, str]:
    """Returns path → page: the index of all verbs, and a page for each."""
    app = build_app()
    intro = (
        f"{note}# Command line\n\n"
        "`fairlead VERB …` and `kubectl fairlead VERB …` are the same program ([how to install "
        "it](../how-to/install-the-command-line.md)).\n\n"
        "Exit codes of all: 0 done, 1 something is wrong that the output names, 2 wrong usage, 3 unreachable, 130 Ctrl-C.\n"
        "Wrong usage and errors go to standard error. `fairlead --version` prints the version, `fairlead VERB --help` this.\n"
    )
    pages = {}
    index = [intro]
    for group, verbs in groupby(VERBS.items(), lambda entry: entry[1].group):
        index.append(f"## {group}\n\n| Command | What it does |\n|---|---|")
        for words, verb in verbs:
            name = words.replace(" ", "-")
            index.append(f"| [`fairlead {words}`](cli/{name}.md) | {verb.sentence} |")
            pages[f"docs/reference/cli/{name}.md"] = note + _verb(words, verb.sentence, command_of(app, words), app)
        index.append("")
    return pages | {"docs/reference/cli.md": "\n".join(index).rstrip() + "\n"}


def unfinished_verbs(verbs: Mapping[str, Verb] = VERBS, examples: Collection[str] = EXAMPLES) -> list[str]:
    """Returns a sentence for each thing that a verb lacks, with the file to change."""
    found = []
    for words, verb in verbs.items():
        module, _, function = verb.function.partition(":")
        try:
            is_there = hasattr(import_module(f"fairlead_cli.{module}"), function)
        except ModuleNotFoundError:
            is_there = False
        if not is_there:
            path = f"cli/fairlead_cli/{module.replace('.', '/')}.py"
            found.append(f"the verb `{words}` has no function: add `{function}` to {path}")
        if words not in examples:
            found.append(f"the verb `{words}` has no examples: add its row to cli/fairlead_cli/examples.py")
    extra = [words for words in examples if words not in verbs]
    return found + [f"examples.py has a row `{words}`, which is no verb: add it to app.py there" for words in extra]


def command_of(app: App, words: str) -> App:
    """Returns the command of a verb, such as ``index stats``."""
    for word in words.split():
        app = app[word]
    return app


def _verb(verb: str, sentence: str, command: App, app: App) -> str:
    collection = command.assemble_argument_collection(default_parameter=app.default_parameter)
    arguments = [argument for argument in collection if argument.show]
    positionals = [argument for argument in arguments if argument.index is not None]
    usage = " ".join([f"fairlead {verb}", *(_word(argument) for argument in positionals), "[OPTION …]"])
    details = inspect.getdoc(command.default_command) or ""
    examples = "\n".join(["```text", *example_lines(verb, "fairlead"), "```\n\n"])
    text = f"# `fairlead {verb}`\n\n```\n{usage}\n```\n\n{sentence}\n\n{_rest(details)}{examples}"
    return text + "| Option | Default | Meaning |\n|---|---|---|\n" + "\n".join(_rows(arguments)) + "\n"


def _rest(details: str) -> str:
    _, _, rest = details.partition("\n\n")
    return f"{rest.strip()}\n\n" if rest.strip() else ""


def _word(argument: Any) -> str:
    several = argument.field_info.kind is inspect.Parameter.VAR_POSITIONAL
    name = argument.field_info.name.upper()
    return f"[{name.removesuffix('S') if several else name}{' …' if several else ''}]"


def _rows(arguments: list[Any]) -> Iterator[str]:
    for argument in arguments:
        names = [f"`{name}`" for name in argument.names if not name.startswith("--empty-")]
        default = argument.field_info.default
        if default is True:
            default = argument.name
        shown = "" if default in (None, False, inspect.Parameter.empty) else f"`{_plain(default)}`"
        help_text = " ".join(str(argument.parameter.help).split()).replace("|", "\\|")
        yield f"| {', '.join(names)}{_value(argument)} | {shown} | {help_text}{_choices(argument)} |"


def _value(argument: Any) -> str:
    """Returns the placeholder after the option, if it takes a value."""
    hint = str(argument.hint)
    if not argument.name.startswith("-") or "bool" in hint or "Literal" in hint:
        return ""
    return next((f" {word}" for name, word in _KINDS.items() if name in hint), "")


def _choices(argument: Any) -> str:
    return f" One of {', '.join(f'`{choice}`' for choice in argument.get_choices())}." if argument.get_choices() else ""


def _plain(default: Any) -> str:
    return (
        " ".join(default)
        if isinstance(default, tuple)
        else f"{default:g}"
        if isinstance(default, float)
        else str(default)
    )
