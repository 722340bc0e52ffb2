-- A process lives and says how far its tickets are; who died is buried, who can run runs.
-- ARGV: process, new version, then for each ticket: id, completion tokens so far, whether it knows its slot (1 | 0).
-- Answers: rights, catalog, missing tickets, then for each of its own that wait: id, place, expected ms;
--   for each that runs and doesn't know it: id, replica, slot, strange; for each of their models how many wait.
local process, models, mine, missing, waiting, running, lines = ARGV[1], {}, {}, {}, {}, {}, {}
call('SETNX', RIGHTS, ARGV[2])
call('SETNX', CATALOG, ARGV[2])
settling()
if #ARGV > 2 then call('ZADD', G .. 'processes', NOW, process) end
bury()
for i = 3, #ARGV, 3 do
  local id, tokens = ARGV[i], tonumber(ARGV[i + 1]) * COMPLETION_WEIGHT
  local ticket = ticket_of(id)
  if not ticket then
    missing[#missing + 1] = id
  else
    models[ticket.model] = true
    if ticket.state == 'run' and tokens > ticket.charged then
      charge(ticket.model, ticket.person, ticket.weight, tokens - ticket.charged)
      ticket.charged = tokens
      save(ticket)
    end
    if ARGV[i + 2] == '0' then mine[#mine + 1] = id end
  end
end
local found = {}
for model in pairs(models) do
  dispatch(model, '')
  local count = waiting_for(model)
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
    running[#running + 1] = {id, ticket.replica, ticket.slot, ticket.strange}
  end
end
return {call('GET', RIGHTS), call('GET', CATALOG), missing, waiting, running, lines}
