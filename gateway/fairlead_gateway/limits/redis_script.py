"""The store's transition as one Lua script for Redis 6.2 and later.

It does what `QuotaStore.apply` does; a test compares the two. The keys of a tenant have its name as
their hash tag, so all of them are in one slot of a cluster:

- `fl1:{tenant}:lim`: a hash with the epoch.
- `fl1:{tenant}:lim|LIMIT|START`: a hash for each limit and window: a field `h` + holder for each
  row, `b` (base), `d` (debt), `a` (amount) and `w` (wanted at). It expires after the next window.

Why the script reads INFO: another run id means a restart or a failover, with which state may be
lost. Only the server itself knows it at the time of a grant.
"""

from typing import Final

SCRIPT: Final = """
local ex = cmsgpack.unpack(ARGV[1])
local strict, lease, fold, known = ex[1], ex[2], ex[3], ex[4]
local merged, wants, reports = ex[5], ex[6], ex[7]
local now, run = tonumber(ARGV[3]), ARGV[2]
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
if run == '' then
  run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or 'unknown'
end
local max, floor = math.max, math.floor
local function text(number) return string.format('%.0f', number) end

local MINUTE, DAY = 60000, 86400000
local function year_and_month(days)
  local z = days + 719468
  local era = floor(z / 146097)
  local day = z - era * 146097
  local year = floor((day - floor(day / 1460) + floor(day / 36524) - floor(day / 146096)) / 365)
  local month = floor((5 * (day - (365 * year + floor(year / 4) - floor(year / 100))) + 2) / 153)
  if month < 10 then return year + era * 400, month + 3 end
  return year + era * 400 + 1, month - 9
end
local function month_start(year, month)
  if month > 12 then year, month = year + 1, 1 end
  if month <= 2 then year, month = year - 1, month + 12 end
  local era = floor(year / 400)
  local y = year - era * 400
  local day = floor((153 * (month - 3) + 2) / 5) + 365 * y + floor(y / 4) - floor(y / 100)
  return (era * 146097 + day - 719468) * DAY
end
local function span(window, at)
  if window == 'Minute' then return at - at % MINUTE, at - at % MINUTE + MINUTE end
  if window == 'Day' then return at - at % DAY, at - at % DAY + DAY end
  if window == 'Month' then
    local year, month = year_and_month(floor(at / DAY))
    return month_start(year, month), month_start(year, month + 1)
  end
  return 0, 0
end

-- Others may have written what is read: what is no number of ours counts as absent.
local function number(value, default)
  local n = tonumber(value)
  return n and n > -2^53 and n < 2^53 and n or default
end
local function numbers(value, count)
  local is_read, found = pcall(cmsgpack.unpack, string.sub(value, 2))
  if string.sub(value, 1, 1) ~= '\\1' or not is_read or type(found) ~= 'table' or #found ~= count then return nil end
  for i = 1, count do if type(found[i]) ~= 'number' or not number(found[i]) then return nil end end
  return found
end

local meta = KEYS[1]
local kind = redis.call('TYPE', meta).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', meta) end
local found = redis.call('HMGET', meta, 'run', 'epoch', 'since', 'lost', 'merged')
local epoch, since, lost, is_merged = found[2], number(found[3], nil), found[4] == '1', found[5] == '1'
if not found[1] or not epoch or not since or found[1] ~= run then
  lost = found[1] and true or known ~= ''
  since, is_merged = now, false
  epoch = text(now) .. '-' .. string.sub(run, 1, 8)
elseif known ~= '' and known ~= epoch then
  lost = true
end
if merged and known == epoch and now >= since + lease then is_merged = true end
redis.call('HSET', meta, 'run', run, 'epoch', epoch, 'since', text(since), 'lost', lost and '1' or '0',
  'merged', is_merged and '1' or '0')
redis.call('PEXPIRE', meta, 70 * DAY)
local may_grant = known == '' or known == epoch
local young = now < since + lease

local function load_account(limit, start, window, amount)
  local key = meta .. '|' .. limit .. '|' .. text(start)
  local account = {key = key, start = start, rows = {}, changed = {}, removed = {}, until_ = 0, base = 0,
    debt = 0, amount = amount, wanted = 0, window = window, exists = false}
  local values = redis.pcall('HGETALL', key)
  if values.err then
    redis.call('DEL', key)
    values = {}
  end
  for i = 1, #values, 2 do
    local name, value = values[i], values[i + 1]
    account.exists = true
    local first = string.sub(name, 1, 1)
    if first == 'h' then
      local r = numbers(value, 5)
      if r then
        account.rows[string.sub(name, 2)] = {granted = r[1], returned = r[2], spent = r[3], busy = r[4], expires = r[5]}
      end
    elseif first == 'b' then
      local b = numbers(value, 2)
      if b then account.until_, account.base = b[1], b[2] end
    elseif first == 'd' then account.debt = number(value, 0)
    elseif first == 'a' then account.amount = number(value, amount)
    elseif first == 'w' then account.wanted = number(value, 0)
    end
  end
  return account
end
local function save(account)
  local words = {'d', text(account.debt), 'a', text(account.amount), 'w', text(account.wanted)}
  if account.until_ > 0 then
    words[#words + 1] = 'b'
    words[#words + 1] = '\\1' .. cmsgpack.pack({account.until_, account.base})
  end
  for name in pairs(account.changed) do
    local r = account.rows[name]
    if r then
      words[#words + 1] = 'h' .. name
      words[#words + 1] = '\\1' .. cmsgpack.pack({r.granted, r.returned, r.spent, r.busy, r.expires})
    end
  end
  redis.call('HSET', account.key, unpack(words))
  for name in pairs(account.removed) do
    if not account.rows[name] then redis.call('HDEL', account.key, 'h' .. name) end
  end
  if account.window == '' then
    redis.call('PEXPIRE', account.key, 3600000)
  else
    local start, ends = span(account.window, account.start)
    redis.call('PEXPIREAT', account.key, text(2 * ends - start + MINUTE))
  end
end
local function row_used(r, windowed)
  if r.expires > now or (strict and windowed) then return max(r.granted - r.returned, r.spent) end
  return windowed and r.spent or 0
end
local function used(account, windowed)
  local total = account.base
  for _, r in pairs(account.rows) do total = total + row_used(r, windowed) end
  return total
end
local function row_of(account, name)
  local r = account.rows[name]
  if not r then
    r = {granted = 0, returned = 0, spent = 0, busy = 0, expires = 0}
    account.rows[name] = r
  end
  account.changed[name] = true
  return r
end

local function apply(report)
  local limit, window, amount = report[1], report[2], report[3]
  local own, needs, seen, bases = report[4] or {}, report[5] or {}, report[6] or {}, report[7] or {}
  local start, ends = span(window, now)
  local windowed = ends > 0
  local before = windowed and span(window, start - 1) or 0
  local accounts, touched, gone = {}, {}, {}
  local function account_of(at)
    if at ~= start and at ~= before and at ~= ends then return nil end
    if not accounts[at] then accounts[at] = load_account(limit, at, window, amount) end
    return accounts[at]
  end
  for _, item in ipairs(bases) do
    local account = account_of(item[1])
    if account then
      touched[item[1]] = true
      local ending, total = item[2][1], item[2][2]
      if ending > account.until_ then
        account.until_, account.base = ending, total
        for name, r in pairs(account.rows) do
          if r.expires <= ending then
            account.rows[name] = nil
            account.removed[name] = true
          end
        end
      elseif ending == account.until_ then
        account.base = max(account.base, total)
      end
    end
  end
  for pass = 1, 2 do
    for _, row in ipairs(pass == 1 and seen or own) do
      local name, account = row[1], account_of(row[2])
      if account then
        touched[row[2]] = true
        if windowed and not account.rows[name] and row[7] > 0 and row[7] <= account.until_ then
          if pass == 2 then gone[name] = true end
        else
          local r = row_of(account, name)
          r.granted, r.returned, r.spent = max(r.granted, row[3]), max(r.returned, row[4]), max(r.spent, row[5])
          if pass == 2 then
            r.busy, r.expires = row[6], max(r.expires, now + lease)
          else
            r.expires = max(r.expires, math.min(row[7], now + lease))
          end
        end
      end
    end
  end
  local account = account_of(start)
  account.amount = max(account.amount, amount)
  if windowed then
    local last = account_of(before)
    if last.exists or touched[before] then account.debt = max(0, last.debt + used(last, true) - last.amount) end
  end
  local available = amount - account.debt - used(account, windowed)

  local refusal = 0
  if not may_grant then refusal = 3
  elseif strict and start <= since + lease then
    if start > 0 and lost and not is_merged then refusal = 4
    elseif young then refusal = 3 end
  end
  local reported, statuses, order = {}, {}, {}
  for _, row in ipairs(own) do
    if row[2] == start then
      if not statuses[row[1]] then order[#order + 1] = row[1] end
      reported[row[1]], statuses[row[1]] = row[3], refusal
    end
  end
  for _, need in ipairs(needs) do
    local name = need[1]
    if not gone[name] then
      if not statuses[name] then order[#order + 1] = name end
      statuses[name] = refusal
      if refusal == 0 then
        local r = row_of(account, name)
        r.expires = max(r.expires, now + lease)
        local ahead = r.granted - (reported[name] or 0)
        local least = need[2] - ahead
        if least > 0 then
          local overdrawn = max(0, r.spent - (r.granted - r.returned))
          local cost = max(0, least - overdrawn)
          if cost > available then
            account.wanted = now
            local idle = 0
            for other, o in pairs(account.rows) do
              if other ~= name and o.expires > now then idle = idle + max(0, o.granted - o.returned - o.spent - o.busy) end
            end
            statuses[name] = cost <= available + idle and 2 or 1
          else
            local live = 0
            for _, o in pairs(account.rows) do if o.expires > now then live = live + 1 end end
            local share = young and 0 or floor(max(0, available) / (2 * max(1, live)))
            local total = max(least, math.min(need[3] - ahead, overdrawn + share))
            r.granted = r.granted + total
            available = available - max(0, total - overdrawn)
          end
        end
      end
    end
  end
  local grants = {}
  for i, name in ipairs(order) do
    local r = account.rows[name]
    if gone[name] then grants[i] = {name, 0, -1, statuses[name]}
    elseif r then grants[i] = {name, r.granted, r.expires, statuses[name]}
    else grants[i] = {name, 0, 0, statuses[name]} end
  end

  local latest, ended = now - fold, {}
  for name, r in pairs(account.rows) do if r.expires <= latest then ended[#ended + 1] = name end end
  if #ended > 16 and since <= latest then
    local ending, total = account.until_, account.base
    for _, name in ipairs(ended) do
      local r = account.rows[name]
      ending, total = max(ending, r.expires), total + row_used(r, windowed)
      account.rows[name] = nil
      account.removed[name] = true
    end
    if windowed then account.until_, account.base = ending, total end
  end
  save(account)
  if windowed and touched[before] then save(accounts[before]) end
  if windowed and touched[ends] then save(accounts[ends]) end

  local rows, kept = {}, {}
  if wants then
    for _, at in ipairs(windowed and {start, before} or {start}) do
      local one = accounts[at]
      local names = {}
      for name in pairs(one.rows) do names[#names + 1] = name end
      table.sort(names)
      for _, name in ipairs(names) do
        local r = one.rows[name]
        rows[#rows + 1] = {name, at, r.granted, r.returned, r.spent, r.busy, r.expires}
      end
      if one.until_ > 0 then kept[#kept + 1] = {at, {one.until_, one.base}} end
    end
  end
  return {limit, start, ends, available, amount - available, now - account.wanted < 2000, grants, rows, kept}
end

local replies = {}
for i, report in ipairs(reports) do replies[i] = apply(report) end
return cmsgpack.pack({epoch, since, now, lost, is_merged or not lost, replies})
"""
