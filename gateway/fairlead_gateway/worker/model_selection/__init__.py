"""From a client's bytes to the model that a request gets.

- `request_parser`: parses a request and finds its model.
- `route_choice`: the model behind a route's name.
- `request_rewrite`: the parameters that a route sets in a body.
- `fallbacks`: the next model of a route, when one has not answered.
- `canary_choice`: whether a request goes to a new revision.
- `conversation`: what identifies a conversation, so that it stays with one model.
"""
