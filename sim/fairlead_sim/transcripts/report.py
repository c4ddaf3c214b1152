"""The results of a replay, as text for a terminal and as the reference page."""

from collections import Counter
from collections.abc import Iterable, Sequence

from fairlead_sim.transcripts.manifest import EXCLUDED, Manifest
from fairlead_sim.transcripts.replay import ReplayResult

_HEAD = """# Recordings of a real vLLM

The simulated engine is held against recordings of vLLM 0.32.0. `python -m fairlead_sim.transcripts DIR` replays them and
prints this table; `tests/sim/transcripts` fails when a claim of the manifest does not hold. This page is generated from
`sim/fairlead_sim/transcripts/manifest.yaml`; do not edit it.

*exact*: status line, headers in order and body are equal after masking ids, times, generated text and Content-Length.
*shape*: same status, same header names, same JSON keys and types at every depth, and for streams the same kinds of events
in order. Token counts are not masked, so an answer that counts the tokens of a text can only match in shape.
"""


def summarize(manifest: Manifest) -> str:
    """Returns a line with the number of recordings per match."""
    count = Counter(entry.match for entry in manifest.entries)
    matched = count["exact"] + count["shape"]
    return (
        f"{matched} of {len(manifest.entries)} recordings match: {count['exact']} exact, {count['shape']} in shape; "
        f"{count['excluded']} excluded; {len(manifest.scenarios)} scenarios have tests of their own."
    )


def render_page(manifest: Manifest) -> str:
    """Returns the reference page, from the manifest alone.

    Why: the replay test proves the manifest's claims, so the page needs no run.
    """
    lines = [
        _HEAD,
        summarize(manifest),
        "",
        "## Recordings",
        "",
        "| recording | engine | match | note |",
        "|---|---|---|---|",
    ]
    for entry in sorted(manifest.entries, key=lambda item: item.name):
        lines.append(f"| `{entry.name}` | {entry.engine} | {entry.match} | {entry.why} |")
    lines += ["", "## Engines", "", "| engine | switches of `python -m fairlead_sim engine` |", "|---|---|"]
    for name, switches in manifest.engines.items():
        lines.append(f"| {name} | `{' '.join(switches)}` |")
    lines += ["", "## Scenarios", "", "| file | what it shows | test |", "|---|---|---|"]
    for scenario in manifest.scenarios:
        tests = "<br>".join(f"`{test}`" for test in scenario.tests)
        lines.append(f"| `{scenario.name}` | {scenario.summary} | {tests} |")
    return "\n".join(lines) + "\n"


def render_table(manifest: Manifest, results: Sequence[ReplayResult]) -> str:
    """Returns a line per recording, with the differences of broken claims, and a line of counts."""
    lines = [f"{'recording':52} {'claimed':9} found"]
    for result in results:
        lines.append(f"{result.entry.name:52} {result.entry.match:9} {result.likeness}")
        if not result.is_as_claimed:
            lines += [f"    {difference}" for difference in result.differences]
    lines += [f"{entry.name:52} {EXCLUDED:9} {entry.why}" for entry in manifest.entries if entry.match == EXCLUDED]
    counts = Counter(result.likeness for result in results)
    lines.append(
        f"{counts['exact'] + counts['shape']} of {len(manifest.entries)} match ({counts['exact']} exact, {counts['shape']} in "
        f"shape), {counts['differs']} differ, {len(manifest.entries) - len(results)} excluded"
    )
    return "\n".join(lines)


def broken_claims(results: Iterable[ReplayResult]) -> list[ReplayResult]:
    """Returns the results that break the manifest's claims."""
    return [result for result in results if not result.is_as_claimed]
