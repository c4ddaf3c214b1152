"""The side channel of KV transfer: what a prefill engine answers to other engines.

Why: real engines use other ports and protocols. Here the same server answers, so an engine that
hangs or has crashed does so for its peers, too.
"""

import asyncio
from typing import Any

import msgspec

from fairlead_sim.api.app import RequestContext
from fairlead_sim.api.info import send_json
from fairlead_sim.http.errors import ResourceNotFound, RouteNotFound
from fairlead_sim.http.fields import RequestFields, json_body
from fairlead_sim.kv_transfer.connector import KvConnector


def bootstrap_info(context: RequestContext) -> None:
    """Serves Mooncake's bootstrap server: rank → engine id and worker addresses."""
    transfer = _connector(context)
    if transfer.settings.connector != "mooncake":
        raise RouteNotFound
    ranks = range(context.engine.settings.data_parallel)
    address = {"0": {"0": f"tcp://{transfer.settings.host}:{transfer.port}"}}
    send_json(context, {str(rank): {"engine_id": transfer.engine_id, "worker_addr": address} for rank in ranks})


def read_blocks(context: RequestContext) -> None:
    """Sends the contents of blocks to any reader with the right engine id.

    Renews the lease that the reader names.
    """
    transfer, body = _connector_and_body(context)
    if body.get("engine_id") != transfer.engine_id:
        raise ResourceNotFound("no engine of this id")
    lender, name = transfer.leases, str(body.get("request_id"))
    lender.renew(name)
    lent = lender.get(name)
    try:
        contents = lender.contents(0 if lent is None else lent.rank, body["blocks"])
    except IndexError:
        raise ResourceNotFound("no such block") from None
    send_json(context, {"contents": contents})


def take_blocks(context: RequestContext) -> None:
    """Sends the blocks of one transfer as soon as it is prefilled; 404 after ``abort_seconds``."""
    transfer, body = _connector_and_body(context)
    if transfer.settings.connector == "mooncake" and body.get("engine_id") != transfer.engine_id:
        raise ResourceNotFound("no engine of this id")
    name = str(body.get("transfer_id"))
    reply, lender = context.writer, transfer.leases

    def send_contents() -> None:
        late.cancel()
        lent = lender.get(name)
        assert lent is not None
        reply.send(200, msgspec.json.encode({"contents": lender.contents(lent.rank, lent.blocks)}))

    def give_up() -> None:
        lender.remove_waiter(name, send_contents)
        reply.fail(ResourceNotFound("no such transfer"))

    late = asyncio.get_running_loop().call_later(transfer.settings.abort_seconds, give_up)
    if lender.get(name) is not None:
        send_contents()
    else:
        lender.call_when_granted(name, send_contents)

        def gone() -> None:
            late.cancel()
            lender.remove_waiter(name, send_contents)

        reply.on_gone = gone


def count_cached_blocks(context: RequestContext) -> None:
    """Sends how many blocks of a prompt are cached here."""
    transfer, body = _connector_and_body(context)
    send_json(context, {"blocks": transfer.cached_blocks([int(key) for key in body.get("keys") or ()])})


def release_lease(context: RequestContext) -> None:
    """Releases the blocks of a transfer that the peer has pulled."""
    transfer, body = _connector_and_body(context)
    send_json(context, {"released": transfer.leases.release(str(body.get("name")))})


def _connector(context: RequestContext) -> KvConnector:
    if context.engine.kv_connector is None:
        raise RouteNotFound
    return context.engine.kv_connector


def _connector_and_body(context: RequestContext) -> tuple[KvConnector, dict[str, Any]]:
    return _connector(context), RequestFields(json_body(context.request)).body
