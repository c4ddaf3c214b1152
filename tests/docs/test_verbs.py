"""The texts for an unfinished verb of the command line: what it lacks, and in which file."""

from fairlead_cli.app import TOOLS, VERBS, Verb
from fairlead_cli.examples import EXAMPLES
from scripts.generators.cli_reference import unfinished_verbs


def test_verbs_have_functions_and_examples() -> None:
    assert unfinished_verbs() == []


def test_what_a_new_verb_lacks_is_named_with_its_file() -> None:
    verbs = VERBS | {"say hello": Verb(TOOLS, "greetings.command:say_hello", "Greet."), "up": VERBS["lint"]}
    verbs["audit"] = Verb(TOOLS, "audit.command:audits", "List.")
    assert unfinished_verbs(verbs, [*EXAMPLES, "wave"]) == [
        "the verb `audit` has no function: add `audits` to cli/fairlead_cli/audit/command.py",
        "the verb `say hello` has no function: add `say_hello` to cli/fairlead_cli/greetings/command.py",
        "the verb `say hello` has no examples: add its row to cli/fairlead_cli/examples.py",
        "examples.py has a row `wave`, which is no verb: add it to app.py there",
    ]
