"""The application: a table of verbs, each loaded when it is called, so that ``fairlead --help``
stays fast.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from cyclopts import App, Group, Parameter

from fairlead import __version__
from fairlead_cli.examples import example_lines

LOCAL, OPERATE, TOOLS = "Run locally", "Operate", "Tools"

_VERBS_BY_GROUP: Final[Mapping[str, Mapping[str, tuple[str, str]]]] = {
    LOCAL: {
        "up": (
            "local.stack.launch",
            "Serve models on this machine: engines, Redis, gateway, live view. Ctrl-C ends it.",
        ),
        "demo": ("replay.demo", "Compare routing presets on real traffic, live and simulated, with a report."),
        "local status": (
            "local.status.command",
            "Show models, pools, instances and the next step of the stack on this machine.",
        ),
    },
    OPERATE: {
        "status": ("cluster.status.command", "Show models, pools, instances and the next step of a cluster."),
        "check": (
            "cluster.checks.command",
            "Check that a cluster is fit for Fairlead, and that the installation is healthy.",
        ),
        "requests": (
            "requests.command",
            "List the last requests, the slow or the failed ones, each with its main cause.",
        ),
        "explain request": ("explain.command", "Explain why a request went to its instance, and how it ended."),
        "explain route": ("explain.command", "Explain where a prompt would go now, and why. Nothing is sent."),
        "explain scaling": ("scaling.explain_command", "Explain why a model has as many replicas as it has."),
        "explain shadow": ("explain.command", "Explain how a model answers copies of requests for another."),
        "routes": ("fleet.command", "List the routes: targets with weights, fallbacks and shadows."),
        "adapters": ("fleet.command", "List the LoRA adapters that engines hold now."),
        "index stats": ("index.command", "Show who writes the index, and what each instance has cached."),
        "index match": ("index.command", "Show which instances have a prompt cached, how far, and in which tier."),
        "index verify": ("index.command", "Compare the index with itself and with what engines can replay."),
        "index watch": ("index.command", "Print changes of the index as they happen."),
        "rollout status": ("rollouts.command", "Show which revision of a model runs, and how far it is."),
        "rollout pause": ("rollouts.command", "Pause the rollouts of a model: changes of its spec wait."),
        "rollout resume": ("rollouts.command", "Run what the spec says: ends a pause and an undo."),
        "rollout undo": ("rollouts.command", "Run an earlier revision of a model, or end its canary."),
        "rollout promote": ("rollouts.command", "Run what the spec says, without or in spite of a canary."),
        "tenants list": ("tenants.command", "Show the tenants: tier, weight, models, keys and limits."),
        "tenants show": ("tenants.command", "Show one tenant with its keys, limits and when they were last used."),
        "keys create": ("keys.command", "Create an API key of a tenant, and print it once."),
        "keys list": ("keys.command", "Show API keys: expiry and last use."),
        "keys rotate": ("keys.command", "Replace an API key: the old one stays valid for a while."),
        "keys revoke": ("keys.command", "Revoke an API key of a tenant."),
        "audit": ("audit.command", "Show who changed or read what: keys, limits, scaling, data of tenants."),
        "usage": ("usage.command", "Show what tenants used: requests, tokens, and cost by the prices of models."),
        "cost": ("usage.command", "Show what replicas cost, divided among tenants. The sum is the bill."),
        "chat": ("chat.command", "Talk to a model in the terminal; /why explains where the answer came from."),
        "replay-scaling": (
            "scaling.replay_command",
            "Replay the autoscaler's decisions on its observations, with other settings.",
        ),
        "support-bundle": ("cluster.bundle.command", "Write a redacted archive of an installation, for support."),
        "airgap images": ("airgap", "Print the images that a release consists of."),
        "version": ("version.command", "Show the version of this program, and of the installation in a cluster."),
    },
    TOOLS: {
        "lint": ("manifest_lint", "Check manifests and fleet files: line, field and fix for every problem."),
        "convert": ("manifest_conversion", "Convert manifests of other systems."),
        "catalog list": ("catalog.command", "Show the models of the catalogue: parameters, weights and context."),
        "catalog show": ("catalog.command", "Write the manifest of a model, with a checked sum of its memory."),
        "replay": ("replay.command", "Send a trace's requests to a running gateway and report the results."),
        "simulate": ("simulation.command", "Simulate traffic under other routing presets, without a cluster."),
        "completion": ("completion", "Print a script that completes commands and options in a shell."),
    },
}
"""Group → words of a verb → its module in this package, and one sentence for the help.

The function has the words as its name.
"""

NOUNS: Final = {
    "local": "Look at what runs on this machine.",
    "explain": "Explain a request, where a prompt would go, a model's replicas, and a shadow's answers.",
    "index": "Look into the index: cached prefixes of instances, consistency, and changes.",
    "tenants": "Look at the tenants that may call models. Without a verb: list them.",
    "keys": "Create, list, rotate and revoke the API keys of tenants.",
    "airgap": "Carry a release to a cluster without internet.",
    "catalog": "Write manifests of widely used models. Without a verb: list them.",
    "rollout": "Follow, pause, resume, undo and promote the rollout of a model in a cluster.",
}
"""Nouns with verbs of their own → one sentence for the help."""
_NAMES: Final = {"kubectl-fairlead": "kubectl fairlead"}
_DEFAULT_VERBS: Final = {"tenants": "list", "catalog": "list"}
"""Noun → the verb that it means alone, or before an option."""


class Verb(NamedTuple):
    """A verb: its function (``module:name`` in this package), and one sentence for the help."""

    group: str
    function: str
    sentence: str


VERBS: Final = {
    words: Verb(group, f"{module}:{words.replace(' ', '_').replace('-', '_')}", sentence)
    for group, rows in _VERBS_BY_GROUP.items()
    for words, (module, sentence) in rows.items()
}
"""Words of a verb → where it is; tests hold the documentation to this table."""


def with_default_verb(arguments: Sequence[str]) -> list[str]:
    """Returns the command line with the verb that its noun means, if it has none."""
    verb = _DEFAULT_VERBS.get(arguments[0]) if arguments else None
    is_missing = len(arguments) == 1 or (len(arguments) > 1 and arguments[1].startswith("-"))
    if verb is None or not is_missing or any(word in ("--help", "-h") for word in arguments[1:2]):
        return list(arguments)
    return [arguments[0], verb, *arguments[1:]]


def _epilogue(words: str, program: str) -> str:
    lines = example_lines(words, _NAMES.get(program, "fairlead"))
    return "  \n".join(["Examples:", *(f"`{line}`" for line in lines)])


def build_app(program: str = "fairlead", arguments: Sequence[str] = ()) -> App:
    """Returns the application with all verbs; no verb is imported yet.

    program: name of the executable, which decides between ``fairlead`` and ``kubectl fairlead``.

    arguments: the command line after the program's name. The ``--help`` of the verb that it calls
    shows the verb's whole docstring with the exit codes; that of other verbs is one sentence.
    """
    app = App(
        name=_NAMES.get(program, "fairlead"),
        version=__version__,
        help="A Kubernetes-native control plane for serving large language models.",
        default_parameter=Parameter(negative_iterable=()),  # no --empty-presets
    )
    groups = {name: Group.create_ordered(name) for name in (LOCAL, OPERATE, TOOLS)}
    nouns: dict[str, App] = {}
    for words, verb in VERBS.items():
        noun, _, name = words.rpartition(" ")
        if noun and noun not in nouns:
            nouns[noun] = App(name=noun, help=NOUNS[noun], group=groups[verb.group])
            app.command(nouns[noun])
        is_requested = words.split() == list(arguments[: 2 if noun else 1])
        (nouns[noun] if noun else app).command(
            f"fairlead_cli.{verb.function}",
            name=name,
            help=None if is_requested else verb.sentence,
            help_epilogue=_epilogue(words, program) if is_requested else None,
            group=None if noun else groups[verb.group],
        )
    return app
