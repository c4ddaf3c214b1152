"""The commands. Progress goes to standard error; standard output is for scripts.

up          starts a cluster and prints the line that puts it into a shell: KUBECONFIG and PATH
down        ends and removes exactly what ``up`` made, also half of it
status      prints processes and memory, nodes and pods; 3 if nothing is up, or not all of it
load        gives a running cluster Fairlead's images of the present working tree
metrics     adds metrics-server to a running cluster
add-node    adds a second node to a running cluster, for pods that tolerate its taint
remove-node removes it
images      writes an archive per image, from the working tree, and prints the files
sbom        writes a bill of materials per image that docker builds, and prints the files
build       builds a level, which takes long the first time, and prints the programs' folder
assets      prints the folder with etcd and kube-apiserver; 3 if there is none
            (``build --level api`` makes it)
tools       builds the tools of the chart's tests, and prints their places as JSON
test-tools  builds everything that ``make test`` needs; 3 if that needs Go and there is none
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster import levels
from e2e.cluster.artifacts import chart_tools, image_set, pinned_versions
from e2e.cluster.artifacts.go_builds import GoMissing, assets, is_built
from e2e.cluster.nodes import kind_cluster
from e2e.cluster.run_record import print_progress
from fairlead import __version__
from scripts.release.release_run import ReleaseError

ABSENT = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when done, 1 when it could not be, 2 on wrong usage, 3 when what was asked for is not
    there."""
    options = _parser().parse_args(arguments)
    run = Path(options.run).resolve() if "run" in options else Path()
    try:
        match options.command:
            case "up":
                print(levels.up(options.level, run).shell_line())
            case "down":
                levels.down(run)
            case "status":
                return 0 if levels.status(run) else ABSENT
            case "load":
                levels.load_images(run, options.tag)
            case "metrics":
                levels.memory_usage(run)
            case "add-node":
                levels.add_node(run)
            case "remove-node":
                levels.remove_node(run)
            case "images":
                print(*image_set.write(Path(options.out), options.tag), sep="\n")
            case "sbom":
                print(*image_set.write_bills(Path(options.out)), sep="\n")
            case "build":
                if options.level == "kind":
                    kind_cluster.prepare()
                print(levels.prepare(options.level)[0])
            case "assets":
                if assets() == pinned_versions.binaries() and not is_built("api"):
                    return ABSENT
                print(assets())
            case "tools":
                if options.look and not chart_tools.are_built():
                    return ABSENT
                print(json.dumps(chart_tools.build_tools()))
            case "test-tools":
                chart_tools.build_tools_for_tests()
    except GoMissing as error:
        print(f"cluster: {error}", file=sys.stderr)
        return ABSENT if options.command == "test-tools" else 1
    except ReleaseError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print_progress("interrupted; `down` removes what is there")
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
        "--level",
        choices=tuple(pinned_versions.LEVELS),
        default="full",
        help="api: the API alone; full: pods run; kind: three nodes, by docker or podman",
    )
    run = argparse.ArgumentParser(add_help=False)
    place = pinned_versions.cache_folder() / "cluster"
    run.add_argument(
        "--run", default=str(place), metavar="DIR", help="folder of this cluster, which `down` removes (%(default)s)"
    )
    commands.add_parser("up", parents=[level, run], help="start a cluster")
    commands.add_parser("down", parents=[run], help="end and remove it")
    commands.add_parser("status", parents=[run], help="what runs")
    tag = argparse.ArgumentParser(add_help=False)
    tag.add_argument("--tag", help=f"of our own images ({__version__})")
    commands.add_parser("load", parents=[tag, run], help="give a cluster that is up our images as they are now")
    commands.add_parser("metrics", parents=[run], help="add metrics-server to a cluster that is up")
    commands.add_parser("add-node", parents=[run], help="add a second node to a cluster that is up")
    commands.add_parser("remove-node", parents=[run], help="remove it")
    made = commands.add_parser("images", parents=[tag], help="write our images as OCI archives")
    made.add_argument("--out", default="out/images", metavar="DIR", help="where to (%(default)s)")
    bills = commands.add_parser("sbom", help="write a CycloneDX file per component from the locks")
    bills.add_argument("--out", default="out/sbom", metavar="DIR", help="where to (%(default)s)")
    commands.add_parser("build", parents=[level], help="compile and write all that a level needs")
    commands.add_parser("assets", help="where etcd and kube-apiserver are")
    beside = commands.add_parser("tools", help="helm, promtool, and the OpenAPI of two releases of Kubernetes")
    beside.add_argument("--look", action="store_true", help="only say where they are; 3 where they are not")
    commands.add_parser("test-tools", help="all that `make test` runs against; 3 where there is no Go to compile it")
    return parser
