"""The output files of a replay: the report in three forms, and a line for each request."""

import csv
from pathlib import Path

import msgspec

from fairlead_cli.replay.report.plots import draw_plots
from fairlead_cli.replay.report.report import ReplayReport, markdown

CSV_COLUMNS = (
    *("policy", "side", "id", "due_seconds", "prompt_tokens", "cached_tokens", "output_tokens", "instance"),
    *("ttft_seconds", "itl_mean_seconds", "finished_seconds", "reason", "error"),
)


def write_report(report: ReplayReport, folder: Path) -> list[Path]:
    """Writes report.json, report.md, report.png and requests.csv; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("report.json", "report.md", "report.png", "requests.csv")]
    files[0].write_bytes(msgspec.json.format(msgspec.json.encode(report.to_json()), indent=2) + b"\n")
    files[1].write_text(markdown(report), encoding="utf-8")
    draw_plots(report, files[2])
    _write_requests(report, files[3])
    return files


def _write_requests(report: ReplayReport, file: Path) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(CSV_COLUMNS)
        for name, policy in report.policies.items():
            for side, run in (("live", policy.live), ("simulated", policy.simulated)):
                for result in run.results if run is not None else ():
                    request_cells = (
                        name,
                        side,
                        result.id,
                        _format_seconds(result.due_seconds),
                        result.prompt_tokens,
                        result.cached_tokens,
                        result.output_tokens,
                    )
                    time_cells = (
                        _format_seconds(result.ttft_seconds),
                        _format_seconds(result.itl_mean_seconds),
                        _format_seconds(result.finished_seconds),
                    )
                    writer.writerow((*request_cells, result.instance, *time_cells, result.reason, result.error))


def _format_seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.6f}"
