-- Replicas: their load, slots and breakers, and where a request may run.

-- How long one looks for another replica than those that have just failed.
local AVOIDED_MS = 400
-- Failures in a row that open a breaker, and for how long it stays open: at first, and after many.
local FAILURES, PAUSE_MS, PAUSE_MOST_MS = 5, 500, 5000

-- Whether a breaker lets a request through: closed, or half open and nobody is trying.
local function passes(replica)
  local known = call('HMGET', G .. 'b:' .. replica, 'until', 'probe')
  if not known[1] then return true, false end
  if NOW < tonumber(known[1]) then return false, false end
  return not (known[2] and call('EXISTS', G .. 't:' .. known[2]) == 1), true
end

-- The free slot that suits best: nobody's yet; this person's last; the coldest of all. And whether it may be a stranger's.
local function free_slot(facts, person, made, free)
  if made < facts.slots then return made, true end
  local key = G .. 'r:' .. facts.id
  local mine = call('HGET', key, 'of' .. person)
  if mine then
    local now = call('HMGET', key, 's' .. mine, 'p' .. mine)
    if not now[1] and now[2] == person then return tonumber(mine), false end
  end
  return tonumber(string.match(free, '%d+')), true
end

-- The slot that last read what this prompt begins with, if it is free still and may be read by this person.
local function warm_slot(ticket, facts, known)
  if not known or known.replica ~= facts.id or known.slot >= facts.slots then return nil end
  local slot = known.slot
  local now = call('HMGET', G .. 'r:' .. facts.id, 's' .. slot, 'p' .. slot, 'h' .. slot)
  if now[1] or now[3] ~= ticket.thread then return nil end
  local mine = now[2] == ticket.person
  if facts.strict and not mine then return nil end
  return slot, not mine
end

local function warm_place(ticket)
  if ticket.thread == '' then return nil end
  local known = call('GET', of(ticket.model, 'thread:' .. ticket.thread))
  if not known then return nil end
  local replica, slot = string.match(known, '(%S+) (%d+)')
  return {replica = replica, slot = tonumber(slot)}
end

-- How loaded a replica is: open requests, their KV tokens, slots used so far, and which of those are free.
local function load_of(replica)
  local known = call('HMGET', G .. 'r:' .. replica, 'open', 'kv', 'made', 'free')
  return {open = tonumber(known[1] or 0), kv = tonumber(known[2] or 0), made = tonumber(known[3] or 0),
    free = known[4] or ' '}
end

local function comes_before(one, other)
  for i, value in ipairs(one.order) do
    if value ~= other.order[i] then return value < other.order[i] end
  end
  return false
end

-- Where the ticket may run now: a replica's facts, a slot, whether a stranger had it, whether it is a probe. Or nothing.
-- A warm slot first, then the least loaded: by KV tokens, then by open requests.
local function find_place(ticket, replicas)
  local best
  local warm = warm_place(ticket)
  for _, facts in ipairs(replicas) do
    local load = load_of(facts.id)
    local open, kv = load.open, load.kv
    local avoided = ticket.avoid ~= '' and string.find(ticket.avoid, facts.id, 1, true) ~= nil
    if open < facts.slots and (facts.kv == 0 or kv + math.min(ticket.kv, facts.context) <= facts.kv)
        and not (avoided and facts.own and NOW - ticket.since < AVOIDED_MS) then
      local slot, strange = nil, false
      if facts.own then slot, strange = warm_slot(ticket, facts, warm) end
      local one = {facts = facts, slot = slot, strange = strange, load = load,
        order = {avoided and 1 or 0, slot and 0 or 1, kv / math.max(1, facts.kv), open / facts.slots}}
      if not best or comes_before(one, best) then
        local may, probing = passes(facts.id)
        if may then one.probing, best = probing, one end
      end
    end
  end
  if best and not best.slot then
    best.slot, best.strange = -1, false
    if best.facts.own then
      best.slot, best.strange = free_slot(best.facts, ticket.person, best.load.made, best.load.free)
      if not best.slot then return nil end
    end
  end
  return best
end

local function replicas_of(model)
  local known = call('GET', of(model, 'replicas'))
  return known and cjson.decode(known) or {}
end

-- Free slots are a list in one field: ' 3 0 2 ', the coldest first.
local function occupy(ticket, load)
  local key, slot = G .. 'r:' .. ticket.replica, ticket.slot
  if slot < 0 then
    call('HSET', key, 'open', load.open + 1, 'kv', load.kv + ticket.kv)
  else
    local free = load.free
    for unused = load.made, slot - 1 do free = free .. unused .. ' ' end
    call('HSET', key, 'open', load.open + 1, 'kv', load.kv + ticket.kv, 's' .. slot, ticket.id, 'p' .. slot, ticket.person,
      'h' .. slot, ticket.thread, 'of' .. ticket.person, slot, 'made', math.max(load.made, slot + 1),
      'free', (string.gsub(free, ' ' .. slot .. ' ', ' ', 1)))
    if ticket.thread ~= '' then
      call('SET', of(ticket.model, 'thread:' .. ticket.thread), ticket.replica .. ' ' .. slot, 'PX', FORGET_MS)
    end
  end
  call('PEXPIRE', key, 86400000)
end

-- Give the replica back; `outcome` is 'ok', 'lost' or ''.
local function vacate(ticket, outcome)
  local key, breaker = G .. 'r:' .. ticket.replica, G .. 'b:' .. ticket.replica
  local known = call('HMGET', key, 'open', 'kv', 'free', 's' .. ticket.slot)
  local free = known[3] or ' '
  if known[4] == ticket.id then
    call('HDEL', key, 's' .. ticket.slot)
    free = free .. ticket.slot .. ' '
  end
  call('HSET', key, 'open', tonumber(known[1] or 0) - 1, 'kv', tonumber(known[2] or 0) - ticket.kv, 'free', free)
  if outcome == 'ok' then
    call('DEL', breaker)
  elseif outcome == 'lost' then
    local failures = call('HINCRBY', breaker, 'failures', 1)
    call('HDEL', breaker, 'probe')
    if failures >= FAILURES then
      local pause = math.min(PAUSE_MOST_MS, PAUSE_MS * 2 ^ math.min(10, failures - FAILURES))
      call('HSET', breaker, 'until', NOW + pause)
    end
    call('PEXPIRE', breaker, PAUSE_MOST_MS * 10)
  elseif call('HGET', breaker, 'probe') == ticket.id then
    call('HDEL', breaker, 'probe')
  end
end
