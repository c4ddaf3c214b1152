"""The exchange with other gateways over Redis, so that all gateways route as one.

- `messages`: what a supervisor sends its workers; `peer_messages`: what gateways send each other.
- `peer_outbox`, `peer_state`: what is to be sent, and what was received.
- `supervisor`: sends and receives it.
- `worker`: applies the dispatches of peers and of sibling workers to a worker's routers.
"""
