"""``fairlead up``: the whole of Fairlead on this machine, until Ctrl-C."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def up(
    *files: Annotated[
        str, Parameter(help="Manifests or folders of them; - is stdin. Without: an example of eight engines.")
    ],
    listen: Annotated[
        str, Parameter(help="Where clients reach the gateway; port 0 takes a free one.")
    ] = "127.0.0.1:8000",
    manage: Annotated[str, Parameter(help="Where status page and management API are.")] = "127.0.0.1:8001",
    speed: Annotated[float, Parameter(help="Simulated time runs this many times as fast.")] = 1.0,
    seed: Annotated[int | None, Parameter(help="Make engines' texts and routing repeatable.")] = None,
    preset: Annotated[str | None, Parameter(help="Route every model this way, whatever its manifest says.")] = None,
    engines_per_process: Annotated[int, Parameter(help="Simulated engines that share a process.")] = 1,
    real: Annotated[
        bool, Parameter(negative=(), help="Run the engines that the manifests name (vllm must be on PATH).")
    ] = False,
    insecure: Annotated[
        bool, Parameter(negative=(), help="Allow listening beyond loopback: nobody is asked for a key.")
    ] = False,
    redis: Annotated[bool, Parameter(help="Start an embedded Redis.")] = True,
    logs: Annotated[Path | None, Parameter(help="Keep every process's output in this folder.")] = None,
    plain: Annotated[bool, Parameter(negative=(), help="Plain lines instead of the live view.")] = False,
) -> int:
    """Serve models on this machine: engines, gateway, Redis and a live view, until Ctrl-C.

    Engines are simulated unless --real is given. Nothing is left behind, however it ends.
    """
    from fairlead_cli.local.launch import Wishes, launch

    return launch(
        Wishes(files, listen, manage, speed, seed, preset, engines_per_process, real, insecure, redis, logs, plain)
    )
