"""The management port: readiness, metrics, the JSON API and the status page. It only reads; nothing here serves a prompt."""

from fairlead_gateway.management.app import management_app
from fairlead_gateway.management.view import View

__all__ = ["View", "management_app"]
