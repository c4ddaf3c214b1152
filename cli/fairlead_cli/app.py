"""The application: a table of verbs, each loaded when it is called, so that ``fairlead --help``
stays fast.
"""

from cyclopts import App, Parameter

from fairlead import __version__

VERBS = {
    "up": (
        "fairlead_cli.commands.local.up:up",
        "Serve models on this machine: engines, Redis, gateway, live view. Ctrl-C ends it.",
    ),
    "chat": (
        "fairlead_cli.commands.local.chat:chat",
        "Talk to a model in the terminal; /why explains where the answer came from.",
    ),
    "status": (
        "fairlead_cli.commands.operations.status:status",
        "Models, pools, instances and what to do next, here or in a cluster.",
    ),
    "check": (
        "fairlead_cli.commands.operations.check:check",
        "Check that a cluster is fit for Fairlead, and that the installation is healthy.",
    ),
    "support-bundle": (
        "fairlead_cli.commands.operations.support_bundle:support_bundle",
        "Write a redacted archive of an installation, for support.",
    ),
    "explain": (
        "fairlead_cli.commands.operations.explain:explain",
        "Explain a request's route, where a prompt would go, and a model's replicas.",
    ),
    "index": (
        "fairlead_cli.commands.operations.index:index",
        "Look into the index: cached prefixes of instances, consistency, and changes.",
    ),
    "rollout": (
        "fairlead_cli.commands.operations.rollout:rollout",
        "Pause, resume, undo and follow the rollout of a model in a cluster.",
    ),
    "lint": (
        "fairlead_cli.commands.manifests.lint:lint",
        "Check manifests and fleet files: line, field and fix for every problem.",
    ),
    "convert": (
        "fairlead_cli.commands.manifests.convert:convert",
        "Rewrite manifests of earlier releases, in files or in a cluster, in the words of this one.",
    ),
    "replay": (
        "fairlead_cli.commands.traffic.replay:replay",
        "Send a trace's requests to a running gateway and report the results.",
    ),
    "replay-scaling": (
        "fairlead_cli.commands.operations.replay_scaling:replay_scaling",
        "Replay the autoscaler's decisions on its observations, with other settings.",
    ),
    "simulate": (
        "fairlead_cli.commands.traffic.simulate:simulate",
        "Simulate traffic under other routing presets, without a cluster.",
    ),
    "demo": (
        "fairlead_cli.commands.local.demo:demo",
        "Compare routing presets on real traffic, live and simulated, with a report.",
    ),
}
"""Verb → its function, and one sentence for the help; tests hold the documentation to this table.
"""


def build_app(program: str = "fairlead", requested_verb: str | None = None) -> App:
    """Returns the application with all verbs; no verb is imported yet.

    program: name of the executable, which decides between ``fairlead`` and ``kubectl fairlead``.

    requested_verb: the verb that will run; its ``--help`` shows the whole docstring, exit codes
    included.
    """
    app = App(
        name="kubectl fairlead" if program == "kubectl-fairlead" else "fairlead",
        version=__version__,
        help="A Kubernetes-native control plane for serving large language models.",
        default_parameter=Parameter(negative_iterable=()),  # no --empty-presets
    )
    for verb, (function, sentence) in VERBS.items():
        app.command(function, name=verb, help=None if verb == requested_verb else sentence)
    return app
