"""``fairlead completion``: completion of commands and options in a shell."""

from typing import Annotated, Literal

from cyclopts import Parameter


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="The shell.")], /) -> int:
    """Print a script that completes commands and options in a shell.

    bash: `source <(fairlead completion bash)`. fish: `fairlead completion fish | source`. zsh:
    `fairlead completion zsh` into a file `_fairlead` of `fpath`.
    """
    from fairlead_cli.app import build_app

    print(build_app().generate_completion(prog_name="fairlead", shell=shell))
    return 0
