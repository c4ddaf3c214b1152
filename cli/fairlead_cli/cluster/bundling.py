"""``fairlead support-bundle``, from its arguments to its exit code."""

import asyncio
import io
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from fairlead import __version__
from fairlead.clock import Clock, SystemClock
from fairlead.errors import BadInput
from fairlead.kube.client import KubeApi
from fairlead_cli.cluster.archive import Packed, Part, pack, write
from fairlead_cli.cluster.checks import judge
from fairlead_cli.cluster.collecting import collect, scrubber
from fairlead_cli.cluster.gathering import gather
from fairlead_cli.cluster.printing import as_plain, lines
from fairlead_cli.cluster.redact import Scrubber
from fairlead_cli.cluster.verdict import Result
from fairlead_cli.cluster.way import Way, find, opened
from fairlead_cli.errors import NoCluster
from fairlead_cli.local import words

OK, UNREACHABLE = 0, 3
_SHOWN: Final = 5


def run(way: Way, target: Path | None) -> int:
    """Collect, pack, write. Raises BadInput for a file that is there already."""
    clock = SystemClock()
    name = f"fairlead-support-{datetime.fromtimestamp(clock.wall(), UTC):%Y%m%dT%H%M%SZ}"
    path = target or Path(f"{name}.tar.gz")
    if path.is_dir():
        path = path / f"{name}.tar.gz"
    if path.exists():
        raise BadInput(f"{path} is there already", field="--output", hint="name another file, or remove it")
    try:
        packed = asyncio.run(_packed(way, clock))
    except NoCluster as error:
        print(f"fairlead support-bundle: {error}", file=sys.stderr)
        return UNREACHABLE
    size = write(packed, path, name, clock.wall())
    print(path)
    _tell(packed, size)
    return OK


async def _packed(way: Way, clock: Clock) -> Packed:
    async with opened(find(way)) as (api, version):
        return await bundle(api, version, clock, way.namespace)


async def bundle(api: KubeApi, version: str, clock: Clock, place: str | None) -> Packed:
    """Everything that goes into the file."""
    facts = await gather(api, version, clock, place=place, before=False)
    scrub, unknown = await scrubber(api, facts)
    results = judge(facts)
    about: dict[str, Any] = {
        "made_by": f"fairlead {__version__}",
        "at": f"{datetime.fromtimestamp(facts.now, UTC):%Y-%m-%dT%H:%M:%SZ}",
        "cluster": scrub.text(facts.server),
        "redacted": "values of Secrets, environment variables, foreign labels and annotations, long arguments, and lines that may "
        "hold a prompt; engines' logs are not in here",
        "secrets_known": f"no: {unknown.why}; only what has the form of a secret was taken out of texts"
        if unknown
        else "yes",
    }
    return pack([*_checks(results, scrub), *await collect(api, facts, scrub)], about)


def _checks(results: tuple[Result, ...], scrub: Scrubber) -> list[Part]:
    text = io.StringIO()
    for line in lines(results):
        text.write(f"{line.plain}\n")
    plain = msgspec.json.format(msgspec.json.encode(scrub.deep(as_plain(results, before=False))))
    return [Part("check.txt", scrub.text(text.getvalue()).encode()), Part("check.json", plain)]


def _tell(packed: Packed, size: int) -> None:
    """On standard error, so that a script can read the path."""
    missing = packed.manifest["missing"]
    print(
        f"{words.plural(len(packed.files) + 1, 'file')}, {words.count(size)}B; look through it before you send it",
        file=sys.stderr,
    )
    for one in missing[:_SHOWN]:
        print(f"not in it: {one['path']}: {one['why']}", file=sys.stderr)
    if len(missing) > _SHOWN:
        print(f"and {len(missing) - _SHOWN} more, which its manifest.json lists", file=sys.stderr)
