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
        "Talk to a model in the terminal; /why says where the answer came from.",
    ),
    "status": (
        "fairlead_cli.commands.operations.status:status",
        "Models, pools, instances and what to do next, here or in a cluster.",
    ),
    "check": (
        "fairlead_cli.commands.operations.check:check",
        "Is a cluster fit for Fairlead, and is what is installed there well?",
    ),
    "support-bundle": (
        "fairlead_cli.commands.operations.support_bundle:support_bundle",
        "Write a redacted archive of what Fairlead has in a cluster, for somebody who helps.",
    ),
    "explain": (
        "fairlead_cli.commands.operations.explain:explain",
        "Why a request went where it went, where one would go, and why a model has so many replicas.",
    ),
    "index": (
        "fairlead_cli.commands.operations.index:index",
        "Look into the index: who holds which prefix, whether that is right, and what changes.",
    ),
    "rollout": (
        "fairlead_cli.commands.operations.rollout:rollout",
        "Hold, resume, undo and follow the rollout of a model in a cluster.",
    ),
    "lint": (
        "fairlead_cli.commands.manifests.lint:lint",
        "Check manifests and fleet files: line, field and fix for every problem.",
    ),
    "replay": (
        "fairlead_cli.commands.traffic.replay:replay",
        "Send a trace's requests to a running gateway and report what came of it.",
    ),
    "replay-scaling": (
        "fairlead_cli.commands.operations.replay_scaling:replay_scaling",
        "The autoscaler's decisions once more over what it saw, with another setting.",
    ),
    "simulate": (
        "fairlead_cli.commands.traffic.simulate:simulate",
        "What would another routing preset do with this traffic? On a virtual clock, without a cluster.",
    ),
    "demo": (
        "fairlead_cli.commands.local.demo:demo",
        "The main job with its report: real traffic under three presets, live and simulated.",
    ),
}
"""Verb → where its function lives, and what it does in a sentence; tests hold the documentation to this table."""


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
