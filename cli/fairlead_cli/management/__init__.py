"""The gateway's management API: `endpoints` (which gateways), `client` and `api_types`."""
