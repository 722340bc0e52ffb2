-- The virtual token counter and the queues: who got how much, who waits (docs/architecture.md, fair_queue.py).

local function of(model, name) return G .. 'm:' .. model .. ':' .. name end

local function counter(model, person) return tonumber(call('ZSCORE', of(model, 'vtc'), person) or 0) end

local known_waiting = {}
local function waiting_for(model)
  known_waiting[model] = known_waiting[model] or tonumber(call('HGET', of(model, 'facts'), 'waiting') or 0)
  return known_waiting[model]
end

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
  known_waiting[model] = call('HINCRBY', of(model, 'facts'), 'waiting', 1)
end

local function dequeue(model, id, person, class)
  local queue = of(model, 'q' .. class .. ':' .. person)
  if call('ZREM', queue, id) == 0 then return end
  known_waiting[model] = call('HINCRBY', of(model, 'facts'), 'waiting', -1)
  if call('ZCARD', queue) == 0 then
    call('ZREM', of(model, 'w' .. class), person)
    if not waits(model, person) then call('HSET', of(model, 'facts'), 'last', person) end
  end
end
