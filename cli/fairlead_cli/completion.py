"""``fairlead completion``: completion of commands and options in a shell."""

from typing import Annotated, Literal

from cyclopts import Parameter

_ZSH_END = """
if [[ $zsh_eval_context[-1] == (loadautofunc|shfunc) ]]; then
  _cyclopts_fairlead "$@"
else
  compdef _cyclopts_fairlead fairlead
fi"""
"""Completes from a file of ``fpath``, whatever its name, and after ``source``.

The first completion loads the file of `fpath`; later ones call what it has become, a function.
"""


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="The shell.")], /) -> int:
    """Print a script that completes commands and options in a shell.

    bash: `source <(fairlead completion bash)`. fish: `fairlead completion fish | source`. zsh: the
    same as in bash after `compinit`, or `fairlead completion zsh` into a file `_fairlead` of
    `fpath`.
    """
    from fairlead_cli.app import build_app

    script = build_app().generate_completion(prog_name="fairlead", shell=shell)
    print(script.rstrip() + _ZSH_END if shell == "zsh" else script)
    return 0
