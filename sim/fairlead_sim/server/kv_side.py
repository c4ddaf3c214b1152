"""The side channel between engines: what a prefill engine answers to one that decodes.

Real engines use ports and protocols of their own for this; here it is a few paths of the same server, so that an engine that is
frozen or dead is so for its peers, too.
"""

import asyncio
from typing import Any

import msgspec

from fairlead_sim.server.app import Call
from fairlead_sim.server.fields import Fields, json_body
from fairlead_sim.server.info import answer
from fairlead_sim.server.problems import NotServed, Unknown
from fairlead_sim.server.transfer import Transfer


def query(call: Call) -> None:
    """Mooncake's bootstrap server: rank → engine id and the addresses of its workers."""
    transfer = _transfer(call)
    if transfer.settings.connector != "mooncake":
        raise NotServed
    ranks = range(call.engine.settings.data_parallel)
    address = {"0": {"0": f"tcp://{transfer.settings.host}:{transfer.port}"}}
    answer(call, {str(rank): {"engine_id": transfer.engine_id, "worker_addr": address} for rank in ranks})


def read(call: Call) -> None:
    """What is in some blocks, whoever asks; only the engine's id must be right."""
    transfer, asked = _asked(call)
    if asked.get("engine_id") != transfer.engine_id:
        raise Unknown("no engine of this id")
    lender, name = transfer.lender, str(asked.get("request_id"))
    lender.renew(name)
    lent = lender.get(name)
    try:
        found = lender.contents(0 if lent is None else lent.rank, asked["blocks"])
    except IndexError:
        raise Unknown("no such block") from None
    answer(call, {"contents": found})


def take(call: Call) -> None:
    """The blocks of one transfer, as soon as it is prefilled; an error when that takes too long."""
    transfer, asked = _asked(call)
    if transfer.settings.connector == "mooncake" and asked.get("engine_id") != transfer.engine_id:
        raise Unknown("no engine of this id")
    name = str(asked.get("transfer_id"))
    reply, lender = call.reply, transfer.lender

    def told() -> None:
        late.cancel()
        lent = lender.get(name)
        assert lent is not None
        reply.send(200, msgspec.json.encode({"contents": lender.contents(lent.rank, lent.blocks)}))

    def give_up() -> None:
        lender.forget(name, told)
        reply.fail(Unknown("no such transfer"))

    late = asyncio.get_running_loop().call_later(transfer.settings.abort_seconds, give_up)
    if lender.get(name) is not None:
        told()
    else:
        lender.await_name(name, told)

        def gone() -> None:
            late.cancel()
            lender.forget(name, told)

        reply.on_gone = gone


def held(call: Call) -> None:
    """How much of a prompt is in this engine's cache, for a peer that would get it from here."""
    transfer, asked = _asked(call)
    answer(call, {"blocks": transfer.held([int(key) for key in asked.get("keys") or ()])})


def release(call: Call) -> None:
    """The blocks were pulled."""
    transfer, asked = _asked(call)
    answer(call, {"released": transfer.lender.release(str(asked.get("name")))})


def _transfer(call: Call) -> Transfer:
    if call.engine.transfer is None:
        raise NotServed
    return call.engine.transfer


def _asked(call: Call) -> tuple[Transfer, dict[str, Any]]:
    return _transfer(call), Fields(json_body(call.request)).body
