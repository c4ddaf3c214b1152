"""``fairlead up``: all of Fairlead on this machine, until Ctrl-C."""

from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from fairlead_cli.local.stack.options import UpOptions

_DEFAULTS = UpOptions()


def up(
    *files: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True,
            help="Manifests or folders of them; - is standard input. Without: an example of eight engines.",
        ),
    ],
    file: Annotated[
        list[str] | None,
        Parameter(name=["--file", "-f"], allow_leading_hyphen=True, help="More FILES, given as with kubectl."),
    ] = None,
    options: Annotated[UpOptions, Parameter(name="*")] = _DEFAULTS,
) -> int:
    """Serve models on this machine: engines, gateway, Redis and a live view, until Ctrl-C.

    Engines are simulated unless --real is given. Nothing is left behind, however it ends.
    """
    from fairlead_cli.local.stack.launch import launch
    from fairlead_cli.manifest_arguments import collect_paths

    return launch(replace(options, files=collect_paths(up, files, file)))
