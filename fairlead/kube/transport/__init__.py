"""Connections to the API server.

- `kubeconfig`: finds the server and the credentials.
- `credentials`: TLS context and token, reloaded when their files change.
- `http_transport`: single requests over keep-alive connections; `watch_stream`: watches.
- `retry`: whether and when to repeat a failed request.
"""
