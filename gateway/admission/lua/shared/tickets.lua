-- Tickets: requests that were let in, from their slot to their end.

local function ticket_of(id)
  local packed = call('GET', G .. 't:' .. id)
  return packed and cmsgpack.unpack(packed)
end

local function save(ticket) call('SET', G .. 't:' .. ticket.id, cmsgpack.pack(ticket)) end

-- It runs there from now on. Whoever calls this saves the ticket.
local function grant(ticket, place)
  ticket.state, ticket.replica, ticket.slot, ticket.granted = 'run', place.facts.id, place.slot, NOW
  ticket.strange = (place.facts.strict and place.strange) and 1 or 0
  occupy(ticket, place.load)
  if place.probing then call('HSET', G .. 'b:' .. place.facts.id, 'probe', ticket.id) end
  if not ticket.moved then charge(ticket.model, ticket.person, ticket.weight, ticket.prompt * PROMPT_WEIGHT) end
end

-- End a ticket: slots, windows and counters become what was really used. Nothing where it has ended already.
local function finish(id, prompt, completion, outcome)
  local ticket = ticket_of(id)
  if not ticket then return nil end
  call('DEL', G .. 't:' .. id)
  call('SREM', G .. 'of:' .. ticket.process, id)
  for subject, reserved in string.gmatch(ticket.reserved, '([^ ;]+)([^;]*);') do
    return_to(subject, reserved, prompt, completion)
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
