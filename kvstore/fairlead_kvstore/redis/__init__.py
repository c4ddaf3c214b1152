"""The connection to Redis.

- `address`: where Redis is, from a URL; `backends`: clients of one server, of sentinels and of a
  cluster
- `link`: `RedisLink`, which connects in the background and runs commands
- `codec`: the encoding of values
"""
