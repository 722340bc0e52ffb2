-- A process lives and says how far its tickets are; who died is buried, who can run runs.
-- ARGV: process, new version, then for each ticket: id and completion tokens so far.
-- Answers: rights, catalog, missing tickets, then for each of its own that wait: id, place, expected ms;
--   for each that runs: id, replica, slot, strange; for each of their models how many wait.
local process, models, missing, waiting, running, lines = ARGV[1], {}, {}, {}, {}, {}
call('SETNX', RIGHTS, ARGV[2])
call('SETNX', CATALOG, ARGV[2])
settling()
if #ARGV > 2 then call('ZADD', G .. 'processes', NOW, process) end
bury()
local mine = {}
for i = 3, #ARGV, 2 do
  local ticket = ticket_of(ARGV[i])
  if not ticket then
    missing[#missing + 1] = ARGV[i]
  else
    mine[#mine + 1] = ticket.id
    local written = tonumber(ARGV[i + 1]) * COMPLETION_WEIGHT
    if ticket.state == 'run' and written > ticket.charged then
      charge(ticket.model, ticket.person, ticket.weight, written - ticket.charged)
      call('HSET', G .. 't:' .. ticket.id, 'charged', written)
    end
    models[ticket.model] = true
  end
end
local found = {}
for model in pairs(models) do
  dispatch(model, '')
  local count = tonumber(call('HGET', of(model, 'facts'), 'waiting') or 0)
  if count > 0 then
    found[model] = places(model)
    lines[#lines + 1] = {model, count}
  end
end
for _, id in ipairs(mine) do
  local ticket = ticket_of(id)
  if ticket and ticket.state == 'wait' then
    local place = found[ticket.model] and found[ticket.model][id] or {0, 0}
    waiting[#waiting + 1] = {id, place[1], place[2]}
  elseif ticket and ticket.state == 'run' then
    running[#running + 1] = {id, ticket.replica, ticket.slot, tonumber(ticket.strange) or 0}
  end
end
return {call('GET', RIGHTS), call('GET', CATALOG), missing, waiting, running, lines}
