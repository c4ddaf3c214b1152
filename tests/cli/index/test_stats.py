"""The table of an index, whose text comes from engines and from Redis."""

import io
import math

from rich.console import Console

from fairlead_cli.index.stats import IndexStats, InstanceContents, render_stats


def contents(**changed: object) -> InstanceContents:
    plain = dict.fromkeys(InstanceContents.__struct_fields__)
    plain |= {"id": "a", "complete": False, "reason": "", "scale_down_reason": "", "trouble": ""}
    plain |= dict.fromkeys(("blocks", "unique", "gpu", "cpu", "disk"), 1)
    return InstanceContents(**(plain | changed))  # type: ignore[arg-type]


def rendered(*instances: InstanceContents, is_wide: bool = False) -> str:
    stats = IndexStats(
        model="ns/m\x1b[2J",
        leader="one",
        lease_seconds=1.0,
        epoch=1,
        sequence=1,
        stream_entries=1,
        stale_seconds=None,
        trouble="",
        unreadable={},
        blocks=1,
        hints=0,
        instances=list(instances),
    )
    stats.name_pods({"0c5e": "tiny-main-x2kd"})
    out = io.StringIO()
    Console(file=out, width=400, force_terminal=False).print(render_stats([stats], is_wide=is_wide))
    return out.getvalue()


def test_text_of_engines_is_neither_markup_nor_terminal_control() -> None:
    text = rendered(contents(id="[red]a", reason="the source of an earlier load of [/x] \x1b]52;c;AAAA\x07 is unknown"))
    assert "[red]a" in text
    assert "load of [/x] \N{REPLACEMENT CHARACTER}]52;c;AAAA" in text
    assert "\x1b" not in text


def test_instances_have_the_names_of_their_pods() -> None:
    text = rendered(contents(id="0c5e/8000/0"), contents(id="adopted"))
    assert "tiny-main-x2kd/8000/0" in text
    assert "adopted" in text
    assert "0c5e" not in text
    wide = rendered(contents(id="0c5e/8000/0"), is_wide=True)
    assert wide.index("tiny-main-x2kd/8000/0") < wide.index(" 0c5e/8000/0")


def test_ages_that_are_no_number_are_unknown() -> None:
    assert "no for unknown: " in rendered(contents(since_seconds=math.inf, evicted_age_seconds=math.inf))
    rendered(contents(since_seconds=math.nan, lag_seconds=-math.inf))
