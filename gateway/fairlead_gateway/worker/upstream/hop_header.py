"""The header that names the gateways which a request has passed; it ends loops.

An endpoint of a model may be a gateway, and by mistake the very gateway that forwards the request.
Every gateway adds its id to the requests that it sends. A request that shows the gateway's own id,
or more ids than the limit `hops`, is refused.
"""

import hashlib
import re
from typing import Final

from fairlead.limits import Limits
from fairlead_gateway.errors import BadRequest, GatewayLoop
from fairlead_gateway.http.request_head import RequestHead

HOP_HEADER: Final[bytes] = b"x-fairlead-hops"
_HOP_IDS: Final = re.compile(rb"[0-9a-f]{12}(?:[ \t]*,[ \t]*[0-9a-f]{12})*")


def create_hop_id(secret: bytes) -> str:
    """Returns the id of the gateways that share a secret; it does not reveal the secret."""
    return hashlib.blake2b(secret, digest_size=6, person=b"fairlead-hop").hexdigest()


def check_hops(head: RequestHead, hop_id: str, limits: Limits) -> None:
    """Raises GatewayLoop if the request was here before, or has passed too many gateways.

    Raises BadRequest if the header does not hold ids.
    """
    if head.get_rare(HOP_HEADER) is None:
        return
    value = b",".join([field for name, field in head.fields if name == HOP_HEADER])
    if _HOP_IDS.fullmatch(value) is None:
        raise BadRequest(f"{HOP_HEADER.decode()}: only gateways set this header", param=HOP_HEADER.decode())
    ids = [part.strip(b" \t").decode("ascii") for part in value.split(b",")]
    if hop_id in ids:
        message, hint = "the request has passed this gateway before", "an endpoint of the model is this gateway itself"
    elif len(ids) > limits.hops:
        message = f"the request has passed more than {limits.hops} gateways"
        hint = "look for endpoints of models that are gateways"
    else:
        return
    raise GatewayLoop(message, hint=hint, headers=(("x-should-retry", "false"),))
