"""The reader: ZMQ connections to engines, from sockets to applied events.

- `endpoints`: where an engine publishes; `engine_info_client`: the HTTP queries that find it
- `engine_subscription`: one engine's connection, stream, replays and timers
- `zmq_connection`, `zmq_listener`: a subscription to one engine, and one to engines that dial
- `replay_client`: replays of missed batches, limited in number
- `zmq_socket`, `fair_scheduler`, `timers`: sockets on the event loop, read in fair turns
- `unread_bytes`: bounds what ZMQ has received and the reader has not read
- `event_application`: from outcomes of a stream to changes of the block store
"""
