"""The commands. What is said while it works goes to standard error; standard output is for scripts:

up      starts a cluster and prints the line that puts it into a shell: KUBECONFIG and PATH
down    ends and removes exactly what ``up`` made, also half of it
status  processes and memory, nodes and pods
build   compiles what a level needs and prints the folder
assets  prints the folder with etcd and kube-apiserver; 3 where it is not there (``build --level api`` makes it)
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster import levels, pins
from cluster.build import assets, build, ready
from cluster.say import ClusterError, say

ABSENT = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when done, 1 when it could not be, 2 on wrong usage, 3 when what was asked for is not there."""
    options = _parser().parse_args(arguments)
    run = Path(options.run).resolve() if "run" in options else Path()
    try:
        match options.command:
            case "up" if options.level != "api":
                raise ClusterError("only level api can be started so far")
            case "up":
                print(levels.up(options.level, run).shell_line())
            case "down":
                levels.down(run)
            case "status":
                return 0 if levels.status(run) else ABSENT
            case "build":
                print(build(options.level))
            case "assets":
                if assets() == pins.binaries() and not ready("api"):
                    return ABSENT
                print(assets())
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("interrupted; `down` removes what is there")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python e2e/cluster", description=summary, epilog=rest, formatter_class=formatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    level = argparse.ArgumentParser(add_help=False)
    level.add_argument(
        "--level", choices=tuple(pins.LEVELS), default="api", help="api: nothing but the API; full: pods run"
    )
    run = argparse.ArgumentParser(add_help=False)
    place = pins.cache_folder() / "cluster"
    run.add_argument(
        "--run", default=str(place), metavar="DIR", help="folder of this cluster, which `down` removes (%(default)s)"
    )
    commands.add_parser("up", parents=[level, run], help="start a cluster")
    commands.add_parser("down", parents=[run], help="end and remove it")
    commands.add_parser("status", parents=[run], help="what runs")
    commands.add_parser("build", parents=[level], help="compile what a level needs")
    commands.add_parser("assets", help="where etcd and kube-apiserver are")
    return parser
