"""From a client's bytes to the model that a request gets.

- `request_parser`: parses a request and finds its model.
- `route_choice`: the model behind a route's name.
- `conversation`: what identifies a conversation, so that it stays with one model.
"""
