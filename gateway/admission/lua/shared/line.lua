-- The line: whose turn it is, and who is told what place.

-- A class that waits is served once for so many of the classes before it.
local BATCH_EVERY = 8

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
          save(ticket)
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
