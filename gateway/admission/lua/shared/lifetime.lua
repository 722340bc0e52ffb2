-- Dead processes, and a memory that was emptied.

-- A process that has been silent for so long is dead.
local DEAD_MS = 3000
-- After the memory was emptied: until everybody had a heartbeat to say again what runs.
local SETTLE_MS = 1500

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
