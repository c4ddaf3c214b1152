"""The API server is away, or silent: what is there stays, what was asked meanwhile comes about,
nothing is deleted on doubt."""

import asyncio
import time
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from fairlead.kube.resources import DEPLOYMENTS, MODEL_DEPLOYMENTS, SERVICES
from fairlead_bench.operator.trials.cluster_setup import TrialVerdict, keep_running, open_cluster
from fairlead_bench.operator.trials.recorder import identities, record_changes
from fairlead_testing.http.cut_link import cut_link
from fairlead_testing.kube.api_server import ApiServer

MODELS = 6


async def run_api_outage(server: ApiServer, seconds: float, logs: Path) -> TrialVerdict:
    """Kills the API server for ``seconds``.

    The operator ends without its lease and is started again.
    """
    found = TrialVerdict()
    async with open_cluster(server, "away", logs) as here, keep_running(here) as started:
        for number in range(MODELS):
            await here.model(f"m{number}")
        await here.until_settled()
        before = await identities(here.api, here.namespace)
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(server.start)
        began = time.monotonic()
        for number in range(2):
            await here.model(f"m{number}", "--max-num-seqs=3")
        await here.api.delete(SERVICES, here.namespace, "m2-main")
        await here.api.delete(MODEL_DEPLOYMENTS, here.namespace, "m3")

        async def back() -> bool:
            there = await identities(here.api, here.namespace)
            return "Service m2-main" in there and len(_revisions(there)) == len(_revisions(before)) + 2

        await here.until(back, "what was asked and what was lost is there")
        await here.until_settled()
        after = await identities(here.api, here.namespace)
        lost = {name for name, uid in before.items() if after.get(name) != uid}
        found.check("nothing but the deleted Service was created again or deleted", lost == {"Service m2-main"}, lost)
        found.check("the operator was started again at most a few times", len(started) <= 2 + seconds / 5, len(started))
        found.figures = {
            "seconds_away": seconds,
            "seconds_to_converge": round(time.monotonic() - began, 1),
            "operator_starts": len(started),
        }
    return found


def _revisions(there: dict[str, str]) -> set[str]:
    return {name for name in there if name.startswith("ControllerRevision")}


async def run_silent_api(server: ApiServer, logs: Path, *, children: bool) -> TrialVerdict:
    """Silences the connections of all watches; new ones work.

    Models that come or change are found by the regular list. With ``children``, a deleted one
    is found once the silence is noticed (a minute and a half).
    """
    found = TrialVerdict()
    where = urlsplit(server.config().server)
    async with cut_link(where.hostname or "", where.port or 443) as gap:
        kubeconfig = _proxy(server, gap.port)
        settings = {"FAIRLEAD_RESYNC": "5s", "FAIRLEAD_LEASE": "60s"}
        async with open_cluster(server, "silent", logs, kubeconfig, **settings) as here:
            which = here.operators.start()
            await here.leader(which)
            for number in range(MODELS):
                await here.model(f"m{number}", pools=("main", "other"))
            await here.until_settled()
            before = await identities(here.api, here.namespace)
            await asyncio.sleep(20.0)  # connections that are kept for the next request are closed after 15 s
            frozen = gap.freeze(spare=1)
            began = time.monotonic()
            async with record_changes(here.api, here.namespace) as tape:
                await here.model("new")
                await here.model("m0", "--max-num-seqs=3", pools=("main", "other"))

                async def known() -> bool:
                    there = await identities(here.api, here.namespace)
                    return "Deployment new-main" in there and len(_revisions(there)) == len(_revisions(before)) + 2

                await here.until(known, "what the watch of models missed is done")
                missed = time.monotonic() - began
                if children:
                    await here.api.delete(DEPLOYMENTS, here.namespace, "m1-main")

                    async def remade() -> bool:
                        return "Deployment m1-main" in await identities(here.api, here.namespace)

                    await here.until(remade, "a child that was deleted unseen is made again")
                    await here.until_settled()
            after = await identities(here.api, here.namespace)
            lost = {name for name, uid in before.items() if after.get(name) != uid}
            found.check("nothing else was deleted", lost == ({"Deployment m1-main"} if children else set()), lost)
            found.check("the same process did all this", here.operators.is_alive(which))
            deleted = [line for line in tape.lines if line.startswith("DELETED")]
            found.figures = {
                "connections_silenced": frozen,
                "seconds_to_missed_models": round(missed, 1),
                "seconds_in_all": round(time.monotonic() - began, 1),
                "deletions": len(deleted),
            }
    return found


def _proxy(server: ApiServer, port: int) -> Path:
    """Writes the administrator's kubeconfig for a proxy into the same folder, since it may name
    files."""
    content = yaml.safe_load(server.kubeconfig.read_text())
    for one in content["clusters"]:
        parts = urlsplit(one["cluster"]["server"])
        one["cluster"]["server"] = f"{parts.scheme}://127.0.0.1:{port}"
    file = server.run / "through.kubeconfig"
    file.write_text(yaml.safe_dump(content))
    file.chmod(0o600)
    return file
