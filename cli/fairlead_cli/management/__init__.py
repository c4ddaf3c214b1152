"""The gateway's management API: `client` and `api_types`."""
