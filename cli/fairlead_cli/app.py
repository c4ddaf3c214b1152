"""The command line: one verb a file, loaded when it is called, so that ``fairlead --help`` stays quick."""

from cyclopts import App

from fairlead import __version__

VERBS = {
    "up": "fairlead_cli.up:up",
    "chat": "fairlead_cli.chat:chat",
    "status": "fairlead_cli.status:status",
    "lint": "fairlead_cli.lint:lint",
    "replay": "fairlead_cli.replay:replay",
    "demo": "fairlead_cli.demo:demo",
}
"""Verb → where its function lives; tests hold the documentation to this table."""


def build() -> App:
    """The application with all verbs; nothing behind them is imported yet."""
    app = App(
        name="fairlead",
        version=__version__,
        help="A Kubernetes-native control plane for serving large language models.",
    )
    for verb, place in VERBS.items():
        app.command(place, name=verb)
    return app
