"""The Lua scripts of the index: every write checks the lease in the same step. The scripts use
Redis commands up to 6.2.

Keys are always (own, idx, ev) of one model. A write fails if the indexer was paused or disconnected
for longer than its lease. It also fails if Redis has lost writes (a failover, a restart, FLUSHALL),
since ``at`` then differs. After either failure the indexer begins a new epoch, or leads no more.
"""

from typing import Final

LEAD: Final = """
local own, idx, ev = KEYS[1], KEYS[2], KEYS[3]
local holder, mine, px, ttl, least, again = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local a, b = redis.call('TYPE', own).ok, redis.call('TYPE', idx).ok
if a ~= 'string' and a ~= 'none' then redis.call('DEL', own) end
if b ~= 'hash' and b ~= 'none' then redis.call('DEL', idx) end
local at = redis.call('HGET', idx, 'at') or ''
local lease = redis.call('GET', own)
local left = redis.call('PTTL', own)
if lease and (left < 0 or left > 4 * tonumber(px)) then lease = false end
local same = at == ARGV[7] or at == ARGV[8]
local kind = redis.call('TYPE', ev).ok
if kind == 'stream' then
  local last = redis.call('XREVRANGE', ev, '+', '-', 'COUNT', 1)
  same = same and last[1] and last[1][1] == string.gsub(at, ':', '-')
elseif kind ~= 'none' or not string.match(at, ':0$') then
  same = false
end
if lease and lease ~= mine and string.match(lease, '^%d+:(.*)$') ~= holder then
  return {'held', lease, at}
end
if mine ~= '' and again == '0' and same then
  redis.call('SET', own, mine, 'PX', px)
  redis.call('PEXPIRE', idx, ttl)
  redis.call('PEXPIRE', ev, ttl)
  if ARGV[9] ~= '' and redis.call('HGET', idx, 'meta') ~= ARGV[9] then redis.call('HSET', idx, 'meta', ARGV[9]) end
  return {'led', mine, at}
end
local before = tonumber(string.match(at, '^(%d+):') or '0') or 0
if before > 9e15 then before = 0 end
local known = tonumber(string.match(mine, '^(%d+):') or '0') or 0
local epoch = string.format('%.0f', math.max(before + 1, known + 1, tonumber(least)))
lease = epoch .. ':' .. holder
redis.call('SET', own, lease, 'PX', px)
return {'new', lease, at}
"""
"""Takes, renews or asks for the lease.

holder, lease, px, ttl: holder, own lease or '', ms of a lease, ms that keys live.
least, again: least new epoch, '1' for a new epoch in any case.
further: two values that ``at`` may have, value of ``meta`` or ''.

Reply: ('held' | 'led' | 'new', lease, at).

It deletes only what exists. After a deletion, a full Redis refuses none of a script's writes, and
an indexer that cannot write would get the lease again.
"""

BEGIN: Final = """
local own, idx, ev = KEYS[1], KEYS[2], KEYS[3]
if redis.call('GET', own) ~= ARGV[1] then return {'fenced'} end
redis.call('DEL', ev)
redis.call('HSET', idx, 'at', ARGV[2], 'meta', ARGV[3])
redis.call('PEXPIRE', idx, ARGV[4])
return {'ok'}
"""
"""(lease, at, meta, ms that keys live) → ('ok' | 'fenced')."""

WRITE: Final = """
local own, idx, ev = KEYS[1], KEYS[2], KEYS[3]
if redis.call('GET', own) ~= ARGV[1] then return {'fenced'} end
local at = redis.call('HGET', idx, 'at') or ''
if at ~= ARGV[2] then return {'moved', at} end
redis.call('XADD', ev, ARGV[4], 'd', ARGV[5])
redis.call('HSET', idx, 'at', ARGV[3])
if ARGV[6] ~= '' then redis.call('XTRIM', ev, 'MINID', '=', ARGV[6]) end
redis.call('PEXPIRE', own, ARGV[7])
if redis.call('PTTL', ev) < 0 then redis.call('PEXPIRE', ev, ARGV[8]) end
return {'ok'}
"""
"""Writes an entry.

Arguments: lease, at before, at after, id of the entry, entry, oldest id to keep or '', ms of a
lease, ms that keys live.
Reply: ('ok' | 'fenced') or ('moved', at).
"""

KEEP: Final = """
local own, idx, ev = KEYS[1], KEYS[2], KEYS[3]
if redis.call('GET', own) ~= ARGV[1] then return {'fenced'} end
local at = redis.call('HGET', idx, 'at') or ''
if at ~= ARGV[2] then return {'moved', at} end
local n = tonumber(ARGV[4])
for i = 5 + n, #ARGV, 2 do redis.call('HSET', idx, ARGV[i], ARGV[i + 1]) end
for i = 5, 4 + n do redis.call('HDEL', idx, ARGV[i]) end
redis.call('PEXPIRE', own, ARGV[3])
return {'ok'}
"""
"""Writes and deletes fields.

Arguments: lease, at, ms of a lease, number of deleted fields, these fields, then field and value in
turn.
Reply: ('ok' | 'fenced') or ('moved', at).
"""

RENEW: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""
"""(lease, ms of a lease), with own as the only key → 1 if the lease is valid."""

RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
"""(lease), with own as the only key."""
