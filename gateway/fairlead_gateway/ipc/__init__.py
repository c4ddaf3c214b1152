"""The messages between the supervisor and its workers, and their channel.

In reading order: `channel` (messages over a socket pair), `messages` (all messages)
and `decision_json` (decisions as JSON).
"""
