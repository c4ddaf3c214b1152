"""The reader: connections to engines, from sockets to applied events.

- `endpoints`: where an engine publishes; `engine_info_client`: the HTTP queries that find it
- `engine_subscription`: one engine's connection, stream, replays and timers
- `namespace_slots`: how many replays run at a time
- `reader_context`: the objects that all subscriptions of one indexer share, and the bytes that all
  engines occupy
- `zmtp_connection`, `fair_scheduler`: sockets on the event loop, read in fair turns
- `event_application`: from outcomes of a stream to changes of the block store
"""
