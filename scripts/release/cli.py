"""``make release``: writes the files of a release into ``dist/``.

A part is a function of :class:`ReleaseRun` that writes files and returns them. Parts run in the
order of ``PARTS``. Name some to make only these.

The last parts describe the files that the earlier ones wrote.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fairlead import __version__
from fairlead.errors import FairleadError
from scripts.release.artefacts import build_chart, build_images
from scripts.release.kubectl_plugin import build_plugin
from scripts.release.publish import publish
from scripts.release.release_run import ARCHITECTURES, ROOT, Part, ReleaseError, ReleaseRun
from scripts.release.signed_files import sign_release, verify_release
from scripts.release.texts import write_texts
from scripts.release.wheel import build_wheel

PARTS: Final[dict[str, Part]] = {
    "wheel": build_wheel,
    "kubectl-plugin": build_plugin,
    "images": build_images,
    "chart": build_chart,
    "texts": write_texts,
    "signatures": sign_release,
}
"""Part → what makes it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when all files were written, 1 when a part failed."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python scripts/release",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="DIR", help="where to (dist)")
    parser.add_argument(
        *("--architecture", "-a"),
        action="append",
        choices=ARCHITECTURES,
        help="of the images (default: all; repeatable)",
    )
    parser.add_argument("--version", default=__version__, help="of images and chart (%(default)s)")
    parser.add_argument(
        *("--registry", "-r"),
        default=os.environ.get("REGISTRY"),
        metavar="PREFIX",
        help="registry of the images, for the chart",
    )
    parser.add_argument("--verify", type=Path, metavar="KEY", help="make nothing: check DIR with this public key")
    parser.add_argument(
        "--publish", action="store_true", help="push images and chart to the registry, and make nothing"
    )
    options = parser.parse_args(arguments)
    if options.verify is not None:
        problems = verify_release(options.out.resolve(), options.verify)
        print(*(problems or ["all files are those that were signed"]), sep="\n")
        return 1 if problems else 0
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    run = ReleaseRun(ROOT, folder, options.version, options.architecture or ARCHITECTURES, options.registry or None)
    try:
        if options.publish:
            for name in publish(run):
                print(name, flush=True)
            return 0
        for name, part in PARTS.items():
            if not options.parts or name in options.parts:
                for path in part(run):
                    print(path.relative_to(folder), flush=True)
    except (ReleaseError, FairleadError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0
