"""``fairlead up``: the whole of Fairlead on this machine, until Ctrl-C."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

_SWITCH = Parameter(negative=(), show_default=False)


def up(
    *files: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True,
            help="Manifests or folders of them; - is standard input. Without: an example of eight engines.",
        ),
    ],
    file: Annotated[
        list[str] | None, Parameter(name=["--file", "-f"], allow_leading_hyphen=True, help="The same, as for kubectl.")
    ] = None,
    listen: Annotated[
        str, Parameter(help="Where clients reach the gateway; port 0 takes a free one.")
    ] = "127.0.0.1:8000",
    manage: Annotated[str, Parameter(help="Where status page and management API are.")] = "127.0.0.1:8001",
    speed: Annotated[float, Parameter(help="Simulated time runs this many times as fast.")] = 1.0,
    seed: Annotated[int | None, Parameter(help="Make engines' texts and routing repeatable.")] = None,
    preset: Annotated[
        str | None, Parameter(help="Route every model by this preset, such as dual-hash or round-robin.")
    ] = None,
    engines_per_process: Annotated[int, Parameter(help="Simulated engines that share a process.")] = 1,
    real: Annotated[
        bool, _SWITCH, Parameter(help="Run the engines that the manifests name (vllm must be on PATH).")
    ] = False,
    insecure: Annotated[
        bool, _SWITCH, Parameter(help="Allow listening beyond loopback: nobody is asked for a key.")
    ] = False,
    redis: Annotated[bool, Parameter(help="Start an embedded Redis.")] = True,
    workers: Annotated[int, Parameter(help="Processes of the gateway that carry requests, on one port.")] = 1,
    logs: Annotated[Path | None, Parameter(help="Keep every process's output in this folder.")] = None,
    plain: Annotated[bool, _SWITCH, Parameter(help="Plain lines instead of the live view.")] = False,
) -> int:
    """Serve models on this machine: engines, gateway, Redis and a live view, until Ctrl-C.

    Engines are simulated unless --real is given. Nothing is left behind, however it ends.
    """
    from fairlead_cli.local.stack.launch import launch
    from fairlead_cli.local.stack.options import UpOptions
    from fairlead_cli.manifest_arguments import collect_paths

    paths = collect_paths(up, files, file)
    return launch(
        UpOptions(
            paths, listen, manage, speed, seed, preset, engines_per_process, real, insecure, redis, workers, logs, plain
        )
    )
