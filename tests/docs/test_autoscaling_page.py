"""`docs/concepts/autoscaling.md`: the figures of sleeping replicas are those of their record."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROWS = json.loads((ROOT / "bench" / "results" / "asleep.json").read_text(encoding="utf-8"))["rows"]
MET = "within the objectives"


def percents(case: str, value: str) -> str:
    """Returns the range of a case over its seeds, as the page writes it."""
    shares = [row[value] for row in ROWS if row["metric"].startswith(f"{case}, seed ") and row["metric"].endswith(MET)]
    least, most = (round(100 * share(shares)) for share in (min, max))
    return f"{least} %" if least == most else f"{least} to {most} %"


def test_shares_within_the_targets_are_those_of_the_record() -> None:
    text = " ".join((ROOT / "docs/concepts/autoscaling.md").read_text(encoding="utf-8").split())
    before, always = (percents("step, 10 always asleep", value) for value in ("versus_value", "value"))
    assert f"ten that always sleep raise the share within targets from {before} to {always}." in text
    assert f"Up to eight, asleep by need, lower it to {percents('step, up to 8 asleep', 'value')}." in text
    zero = "from zero within 15 s, up to 8 asleep"
    slept, without = (percents(zero, value) for value in ("value", "versus_value"))
    assert f"From zero, {slept} of first tokens come within 15 s, instead of {without}." in text
