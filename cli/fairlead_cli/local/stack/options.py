"""The options of ``fairlead up``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

_SWITCH: Final = Parameter(negative=(), show_default=False)


@dataclass(frozen=True, slots=True)
class UpOptions:
    """The options as given; ``files`` are all manifests."""

    files: Annotated[tuple[str, ...], Parameter(parse=False)] = ()
    listen: Annotated[str, Parameter(help="Where clients reach the gateway; port 0 takes a free one.")] = (
        "127.0.0.1:8000"
    )
    manage: Annotated[str, Parameter(help="Where status page and management API are.")] = "127.0.0.1:8001"
    speed: Annotated[float, Parameter(help="Simulated time runs this many times as fast.")] = 1.0
    seed: Annotated[int | None, Parameter(help="Make engines' texts and routing repeatable.")] = None
    preset: Annotated[
        str | None, Parameter(help="Route every model by this preset, such as dual-hash or round-robin.")
    ] = None
    engines_per_process: Annotated[int, Parameter(help="Simulated engines that share a process.")] = 1
    real: Annotated[
        bool, _SWITCH, Parameter(help="Run the engines that the manifests name (vllm must be on PATH).")
    ] = False
    insecure: Annotated[
        bool, _SWITCH, Parameter(help="Allow listening beyond loopback, without asking callers for a key.")
    ] = False
    redis: Annotated[bool, Parameter(help="Start an embedded Redis.")] = True
    workers: Annotated[int, Parameter(help="Processes of the gateway that carry requests, on one port.")] = 1
    logs: Annotated[Path | None, Parameter(help="Keep every process's output in this folder.")] = None
    plain: Annotated[bool, _SWITCH, Parameter(help="Plain lines instead of the live view.")] = False
