"""The HTTP session of kopf, which decodes a list of models one at a time and keeps little of each.

Why: decoded, a model takes up to 25 times its bytes. kopf decodes all models of a page, and holds
them until each is handled. Some 15 models of the largest size exceeded the operator's memory.
"""

from typing import Any

import aiohttp
import kopf

from fairlead.kube.json_decoding import decode_page
from fairlead.kube.resources import MODEL_DEPLOYMENTS
from fairlead.kube.transport.kubeconfig import ClusterConfig
from fairlead_operator.kube.kopf_login import connection_info
from fairlead_operator.kube.object_trimming import trim_model

MODELS_PER_PAGE = 16
"""Models in one page of kopf's list: at most 24 MiB, since etcd takes objects of about 1.5 MiB."""


class TrimmedResponse(aiohttp.ClientResponse):
    """A response that decodes the models of a list one at a time, and trims each."""

    async def json(self, **options: Any) -> Any:
        """Returns the decoded body."""
        if self.status != 200 or not self.url.path.endswith(f"/{MODEL_DEPLOYMENTS.plural}"):
            return await super().json(**options)
        page = decode_page(await self.read(), MODEL_DEPLOYMENTS, trim_model)
        return {"metadata": page.metadata, "items": page.items}


def open_session(access: ClusterConfig, wall: float) -> kopf.AiohttpSession:
    """Returns a session with our credentials. kopf closes it, and opens another one in time.

    Raises ClusterConfigError for options that kopf lacks, or an unreadable token.

    wall: Unix seconds.
    """
    info = connection_info(access, wall)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        response_class=TrimmedResponse,
    )
    return kopf.AiohttpSession(
        server=info.server,
        default_namespace=info.default_namespace,
        expiration=info.expiration,
        aiohttp_session=session,
    )
