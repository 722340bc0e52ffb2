-- What every script of the gateway shares. Valkey runs one script at a time, so each is one indivisible step; its clock
-- is the only one. Everything kept here can be lost: windows are read again from Postgres, tickets said again by those
-- who hold them.
--
--   epoch                  since when this memory exists
--   processes              who holds tickets, by the time of the last heartbeat; of:PROCESS its tickets
--   t:TICKET               one request, waiting or running
--   m:MODEL:…              vtc: counters of people · w0 w1 w2: people who wait, by counter · qCLASS:PERSON: their tickets
--                          weights · facts · replicas · thread:THREAD: the slot that read it last
--   r:REPLICA              open requests, KV tokens, slots (made: used so far; free: those of them that are free, coldest
--                          first; of each s: ticket, p: last person, h: last thread) · b:REPLICA its breaker
--   l:SUBJECT:METRIC       a sliding window, or the set of open requests

local G = 'llamaproj:gate:'
local RIGHTS, CATALOG = 'llamaproj:version:rights', 'llamaproj:version:catalog'
local call = redis.call
local time = call('TIME')
local NOW = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- A process that has been silent for so long is dead.
local DEAD_MS = 3000
-- After the memory was emptied: until everybody had a heartbeat to say again what runs.
local SETTLE_MS = 1500
-- How long one looks for another replica than those that have just failed.
local AVOIDED_MS = 400
-- Failures in a row that open a breaker, and for how long it stays open: at first, and after many.
local FAILURES, PAUSE_MS, PAUSE_MOST_MS = 5, 500, 5000
-- A class that waits is served once for so many of the classes before it.
local BATCH_EVERY = 8
local PROMPT_WEIGHT, COMPLETION_WEIGHT = 1, 2
local FORGET_MS = 3600000

-- Sliding windows -----------------------------------------------------------------------------------------------------

-- By metric: requests, prompt and completion tokens a minute; prompt and completion tokens a day.
local MINUTE, DAY = {width = 1000, count = 60}, {width = 1800000, count = 48}
local WINDOWS = {MINUTE, MINUTE, MINUTE, DAY, DAY}
local CONCURRENT = 6

local function window_key(subject, metric) return G .. 'l:' .. subject .. ':' .. metric end

-- What counts now. A bucket counts until its last instant is outside, so no window of that length ever holds more.
local function slide(key, window)
  local head = math.floor(NOW / window.width)
  local oldest = head - window.count
  local known = call('HMGET', key, 'total', 'from')
  local total, from = tonumber(known[1]) or 0, tonumber(known[2])
  if not from then return 0, oldest, head, false end
  if from < oldest then
    if oldest - from > window.count then
      call('DEL', key)
      total = 0
    else
      for bucket = from, oldest - 1 do
        local amount = call('HGET', key, bucket)
        if amount then
          total = total - tonumber(amount)
          call('HDEL', key, bucket)
        end
      end
    end
    from = oldest
    call('HSET', key, 'total', total, 'from', from)
    call('PEXPIRE', key, (window.count + 2) * window.width)
  end
  return total, from, head, true
end

-- Days are begun by the script that knows what was before (seed.lua), minutes by whatever comes first.
local function add(key, window, amount)
  local head = math.floor(NOW / window.width)
  if call('HINCRBY', key, head, amount) == amount then
    if window == MINUTE then call('HSETNX', key, 'from', head - window.count) end
    call('PEXPIRE', key, (window.count + 2) * window.width)
  end
  call('HINCRBY', key, 'total', amount)
  return head
end

-- Correct what was reserved in a bucket, as long as it counts at all.
local function correct(key, window, bucket, difference)
  if difference == 0 then return end
  slide(key, window)
  if call('HEXISTS', key, bucket) == 1 then
    call('HINCRBY', key, bucket, difference)
    call('HINCRBY', key, 'total', difference)
  end
end

-- In how many milliseconds there is room for so much more.
local function room_in(key, window, from, head, excess)
  for bucket = from, head do
    excess = excess - (tonumber(call('HGET', key, bucket) or 0))
    if excess <= 0 then return (bucket + window.count + 1) * window.width - NOW end
  end
  return (window.count + 1) * window.width
end

-- Counters and queues -------------------------------------------------------------------------------------------------

local function of(model, name) return G .. 'm:' .. model .. ':' .. name end

local function counter(model, person) return tonumber(call('ZSCORE', of(model, 'vtc'), person) or 0) end

local function waiting_for(model) return tonumber(call('HGET', of(model, 'facts'), 'waiting') or 0) end

local function waits(model, person)
  for class = 0, 2 do
    if call('ZSCORE', of(model, 'w' .. class), person) then return true end
  end
  return false
end

-- Tokens of service, as many as the person's weight makes of them.
local function charge(model, person, weight, tokens)
  if tokens == 0 then return end
  local value = call('ZINCRBY', of(model, 'vtc'), tokens / weight, person)
  if waiting_for(model) <= 0 then return end
  for class = 0, 2 do call('ZADD', of(model, 'w' .. class), 'XX', value, person) end
end

-- Who comes anew has no credit from before: the least of those who wait, or of whoever waited last.
local function lift(model, person, waiting, last)
  local least
  if waiting > 0 then
    if waits(model, person) then return end
    for class = 0, 2 do
      local first = call('ZRANGE', of(model, 'w' .. class), 0, 0, 'WITHSCORES')
      if first[2] and (not least or tonumber(first[2]) < least) then least = tonumber(first[2]) end
    end
  end
  if not least then
    if not last or last == person then return end
    least = counter(model, last)
  end
  if counter(model, person) < least then call('ZADD', of(model, 'vtc'), least, person) end
end

local function enqueue(ticket)
  local model, person, class = ticket.model, ticket.person, ticket.class
  if ticket.weight == 1 then call('HDEL', of(model, 'weights'), person)
  else call('HSET', of(model, 'weights'), person, ticket.weight) end
  call('ZADD', of(model, 'q' .. class .. ':' .. person), ticket.seq, ticket.id)
  call('ZADD', of(model, 'w' .. class), counter(model, person), person)
  call('HINCRBY', of(model, 'facts'), 'waiting', 1)
end

local function dequeue(model, id, person, class)
  local queue = of(model, 'q' .. class .. ':' .. person)
  if call('ZREM', queue, id) == 0 then return end
  call('HINCRBY', of(model, 'facts'), 'waiting', -1)
  if call('ZCARD', queue) == 0 then
    call('ZREM', of(model, 'w' .. class), person)
    if not waits(model, person) then call('HSET', of(model, 'facts'), 'last', person) end
  end
end

-- Replicas ------------------------------------------------------------------------------------------------------------

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

-- Where the ticket may run now: a replica's facts, a slot, whether a stranger had it, whether it is a probe. Or nothing.
-- A warm slot first, then the least loaded: by KV tokens, then by open requests.
local function find_place(ticket, replicas)
  local best
  local warm = warm_place(ticket)
  for _, facts in ipairs(replicas) do
    local load = call('HMGET', G .. 'r:' .. facts.id, 'open', 'kv', 'made', 'free')
    local open, kv = tonumber(load[1] or 0), tonumber(load[2] or 0)
    local avoided = ticket.avoid ~= '' and string.find(ticket.avoid, facts.id, 1, true) ~= nil
    if open < facts.slots and (facts.kv == 0 or kv + math.min(ticket.kv, facts.context) <= facts.kv)
        and not (avoided and facts.own and NOW - ticket.since < AVOIDED_MS) then
      local may, probing = passes(facts.id)
      if may then
        local slot, strange = nil, false
        if facts.own then slot, strange = warm_slot(ticket, facts, warm) end
        local one = {facts = facts, slot = slot, strange = strange, probing = probing,
          made = tonumber(load[3] or 0), free = load[4] or '',
          order = {avoided and 1 or 0, slot and 0 or 1, kv / math.max(1, facts.kv), open / facts.slots}}
        local better = not best
        if best then
          for i = 1, 4 do
            if one.order[i] ~= best.order[i] then better = one.order[i] < best.order[i] break end
          end
        end
        if better then best = one end
      end
    end
  end
  if best and not best.slot then
    best.slot, best.strange = -1, false
    if best.facts.own then
      best.slot, best.strange = free_slot(best.facts, ticket.person, best.made, best.free)
      if not best.slot then return nil end
    end
  end
  return best
end

local function replicas_of(model)
  local known = call('GET', of(model, 'replicas'))
  return known and cjson.decode(known) or {}
end

-- Tickets -------------------------------------------------------------------------------------------------------------

local FIELDS = {'model', 'person', 'class', 'weight', 'prompt', 'kv', 'state', 'arrived', 'seq', 'process', 'replica',
  'slot', 'granted', 'charged', 'thread', 'avoid', 'since', 'reserved', 'strange', 'subjects', 'moved', 'slots'}

local function ticket_of(id)
  local values = call('HMGET', G .. 't:' .. id, unpack(FIELDS))
  if not values[1] then return nil end
  local ticket = {id = id}
  for i, name in ipairs(FIELDS) do ticket[name] = values[i] or '' end
  for _, name in ipairs({'class', 'weight', 'prompt', 'kv', 'arrived', 'seq', 'granted', 'charged', 'since', 'slot', 'slots'}) do
    ticket[name] = tonumber(ticket[name]) or 0
  end
  return ticket
end

-- Free slots are a list in one field: ' 3 0 2 ', the coldest first.
local function occupy(ticket, replica, slot)
  local key = G .. 'r:' .. replica
  call('HINCRBY', key, 'open', 1)
  call('HINCRBY', key, 'kv', ticket.kv)
  if slot >= 0 then
    local known = call('HMGET', key, 'made', 'free')
    local made, free = tonumber(known[1] or 0), known[2] or ' '
    for unused = made, slot - 1 do free = free .. unused .. ' ' end
    call('HSET', key, 's' .. slot, ticket.id, 'p' .. slot, ticket.person, 'h' .. slot, ticket.thread,
      'of' .. ticket.person, slot, 'made', math.max(made, slot + 1),
      'free', (string.gsub(free, ' ' .. slot .. ' ', ' ', 1)))
    if ticket.thread ~= '' then
      call('SET', of(ticket.model, 'thread:' .. ticket.thread), replica .. ' ' .. slot, 'PX', FORGET_MS)
    end
  end
  call('PEXPIRE', key, 86400000)
end

-- Give the replica back; `outcome` is 'ok', 'lost' or ''.
local function vacate(ticket, outcome)
  local key, breaker = G .. 'r:' .. ticket.replica, G .. 'b:' .. ticket.replica
  call('HINCRBY', key, 'open', -1)
  call('HINCRBY', key, 'kv', -ticket.kv)
  if ticket.slot >= 0 then
    local known = call('HMGET', key, 's' .. ticket.slot, 'free')
    if known[1] == ticket.id then
      call('HDEL', key, 's' .. ticket.slot)
      call('HSET', key, 'free', (known[2] or ' ') .. ticket.slot .. ' ')
    end
  end
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

local function grant(ticket, place)
  local strange = (place.facts.strict and place.strange) and 1 or 0
  call('HSET', G .. 't:' .. ticket.id, 'state', 'run', 'replica', place.facts.id, 'slot', place.slot, 'granted', NOW,
    'strange', strange, 'slots', place.facts.slots)
  ticket.state, ticket.replica, ticket.slot, ticket.granted, ticket.strange =
    'run', place.facts.id, place.slot, NOW, tostring(strange)
  occupy(ticket, place.facts.id, place.slot)
  if place.probing then call('HSET', G .. 'b:' .. place.facts.id, 'probe', ticket.id) end
  if ticket.moved == '' then charge(ticket.model, ticket.person, ticket.weight, ticket.prompt * PROMPT_WEIGHT) end
end

-- The classes in the order in which they are asked: those who lost their replica, people, programs nobody waits for.
-- The last one is asked first once in a while, so that it never starves.
local function classes_now(model)
  if call('EXISTS', of(model, 'w2')) == 1 and call('EXISTS', of(model, 'w1')) == 1
      and tonumber(call('HGET', of(model, 'facts'), 'passed') or 0) >= BATCH_EVERY then
    return {0, 2, 1}
  end
  return {0, 1, 2}
end

-- Let run whoever can, in the fair order; tell those who wait in another step than this.
local function dispatch(model, mine)
  if waiting_for(model) <= 0 then return end
  local replicas = replicas_of(model)
  local granted = true
  while granted do
    granted = false
    for _, class in ipairs(classes_now(model)) do
      -- Whoever is first may wait for another replica than those that failed; others needn't wait for that.
      for _, person in ipairs(call('ZRANGE', of(model, 'w' .. class), 0, 7)) do
        local id = call('ZRANGE', of(model, 'q' .. class .. ':' .. person), 0, 0)[1]
        local ticket = id and ticket_of(id)
        if id and not ticket then
          dequeue(model, id, person, class)
          granted = true
          break
        end
        local place = ticket and find_place(ticket, replicas)
        if place then
          local both = call('EXISTS', of(model, 'w2')) == 1
          dequeue(model, id, person, class)
          grant(ticket, place)
          if class == 1 and both then call('HINCRBY', of(model, 'facts'), 'passed', 1) end
          if class == 2 then call('HSET', of(model, 'facts'), 'passed', 0) end
          if id ~= mine then
            call('PUBLISH', G .. 'granted:' .. ticket.process,
              table.concat({id, ticket.replica, ticket.slot, ticket.strange}, ' '))
          end
          granted = true
          break
        end
      end
      if granted then break end
    end
  end
end

-- Places in the line of everybody who waits for the model, were each served for what one costs on average.
local function places(model)
  local facts = call('HMGET', of(model, 'facts'), 'cost', 'service')
  local cost, entries = tonumber(facts[1] or 0), {}
  if cost <= 0 then cost = 1 end
  for class = 0, 2 do
    local people = call('ZRANGE', of(model, 'w' .. class), 0, -1, 'WITHSCORES')
    for i = 1, #people, 2 do
      local weight = tonumber(call('HGET', of(model, 'weights'), people[i]) or 1)
      for nth, id in ipairs(call('ZRANGE', of(model, 'q' .. class .. ':' .. people[i]), 0, -1)) do
        entries[#entries + 1] = {id, class, tonumber(people[i + 1]) + (nth - 1) * cost / weight}
      end
    end
  end
  table.sort(entries, function(a, b)
    if a[2] ~= b[2] then return a[2] < b[2] end
    if a[3] ~= b[3] then return a[3] < b[3] end
    return a[1] < b[1]
  end)
  local slots, service = 0, tonumber(facts[2] or 0)
  for _, one in ipairs(replicas_of(model)) do slots = slots + one.slots end
  local found = {}
  for i, entry in ipairs(entries) do
    found[entry[1]] = {i, math.floor(service * math.ceil(i / math.max(1, slots)))}
  end
  return found, #entries, service * math.ceil(#entries / math.max(1, slots))
end

-- End a ticket: slots, windows and counters become what was really used. Nothing where it has ended already.
local function finish(id, prompt, completion, outcome)
  local ticket = ticket_of(id)
  if not ticket then return nil end
  call('DEL', G .. 't:' .. id)
  call('SREM', G .. 'of:' .. ticket.process, id)
  for subject in string.gmatch(ticket.subjects, '%S+') do call('SREM', window_key(subject, CONCURRENT), id) end
  for key, metric, bucket, amount in string.gmatch(ticket.reserved, '(%S+) (%d) (%d+) (%d+);') do
    metric = tonumber(metric)
    local used = tonumber(amount)
    if metric == 2 or metric == 4 then used = prompt elseif metric == 3 or metric == 5 then used = completion end
    correct(key, WINDOWS[metric], tonumber(bucket), used - tonumber(amount))
  end
  if ticket.state == 'wait' then
    dequeue(ticket.model, id, ticket.person, ticket.class)
    return ticket
  end
  if ticket.state == 'light' then return ticket end
  vacate(ticket, outcome)
  charge(ticket.model, ticket.person, ticket.weight,
    (prompt - ticket.prompt) * PROMPT_WEIGHT + completion * COMPLETION_WEIGHT - ticket.charged)
  call('PEXPIRE', of(ticket.model, 'vtc'), FORGET_MS)
  if outcome == 'ok' then
    local facts = of(ticket.model, 'facts')
    local known = call('HMGET', facts, 'service', 'cost')
    local service = NOW - ticket.granted
    local cost = prompt * PROMPT_WEIGHT + completion * COMPLETION_WEIGHT
    call('HSET', facts, 'service', known[1] and (known[1] * 0.8 + service * 0.2) or service,
      'cost', known[2] and (known[2] * 0.8 + cost * 0.2) or cost)
  end
  return ticket
end

-- End what dead processes held, with what was last heard of it. Who was silent because all were gets another chance.
local function bury()
  local last = tonumber(call('GET', G .. 'beat') or 0)
  if NOW - last > SETTLE_MS then call('SET', G .. 'grace', NOW + DEAD_MS, 'PX', DEAD_MS) end
  call('SET', G .. 'beat', NOW, 'PX', FORGET_MS)
  if call('EXISTS', G .. 'grace') == 1 then return end
  for _, process in ipairs(call('ZRANGEBYSCORE', G .. 'processes', '-inf', NOW - DEAD_MS)) do
    local touched = {}
    for _, id in ipairs(call('SMEMBERS', G .. 'of:' .. process)) do
      local ticket = ticket_of(id)
      if ticket then
        finish(id, ticket.prompt, math.floor(ticket.charged / COMPLETION_WEIGHT), '')
        touched[ticket.model] = true
      end
    end
    call('DEL', G .. 'of:' .. process)
    call('ZREM', G .. 'processes', process)
    for model in pairs(touched) do dispatch(model, '') end
  end
end

-- In how many milliseconds this memory is complete: an emptied one begins without what runs.
local function settling()
  local epoch = call('GET', G .. 'epoch')
  if not epoch then
    call('SET', G .. 'epoch', NOW)
    return SETTLE_MS
  end
  return math.max(0, tonumber(epoch) + SETTLE_MS - NOW)
end
