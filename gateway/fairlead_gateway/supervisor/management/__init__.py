"""The management port: readiness, metrics, the JSON API and the status page.

It only reads. Nothing here serves a prompt. In reading order:

- `server`: the listening socket, and its requests as ASGI calls.
- `access/`: hosts, origins, and the scopes of management tokens.
- `app`, `probes`: the open paths; `app` loads the API at its first request.
- `api`, `schemas`: the JSON routes and their types.
- `view`: the interface to the gateway that all of them read.
- `serializers`, `stats`: the JSON values.
- `static/`: the HTML page.
"""

from fairlead_gateway.supervisor.management.app import create_management_app
from fairlead_gateway.supervisor.management.view import GatewayStatus, GatewayView

__all__ = ["GatewayStatus", "GatewayView", "create_management_app"]
