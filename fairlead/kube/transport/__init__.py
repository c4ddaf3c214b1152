"""Connections to the API server.

- `kubeconfig`: finds the server and the credentials.
- `credentials`: TLS context and token, reloaded when their files change.
- `http_transport`: single requests and watches, over aiohttp.
- `retry`: whether and when to repeat a failed request.
"""
