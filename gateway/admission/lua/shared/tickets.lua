-- Tickets: requests that were let in, from their slot to their end.

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
