"""The management port: readiness, metrics, the JSON API and the status page. It only reads; nothing here serves a prompt."""

from fairlead_gateway.management.app import management_app
from fairlead_gateway.management.view import Look, View

__all__ = ["Look", "View", "management_app"]
