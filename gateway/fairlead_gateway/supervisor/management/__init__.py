"""The management port: readiness, metrics, the JSON API and the status page. It only reads; nothing here serves a prompt."""

from fairlead_gateway.supervisor.management.app import create_management_app
from fairlead_gateway.supervisor.management.view import GatewayStatus, GatewayView

__all__ = ["GatewayStatus", "GatewayView", "create_management_app"]
