-- The replica was lost: give it back and go before everybody else to another one.
-- ARGV: ticket, process, outcome ('lost' | '')
local ticket = ticket_of(ARGV[1])
if not ticket then return {'gone'} end
if ticket.state == 'run' then
  vacate(ticket, ARGV[3])
  local avoid = ticket.avoid == '' and ticket.replica or ticket.avoid .. ',' .. ticket.replica
  call('HSET', G .. 't:' .. ticket.id, 'state', 'wait', 'class', 0, 'avoid', avoid, 'since', NOW, 'moved', 1,
    'replica', '', 'slot', -1)
  ticket.class = 0
  enqueue(ticket)
end
dispatch(ticket.model, ticket.id)
ticket = ticket_of(ARGV[1])
if ticket.state == 'wait' then return {'wait', 1, 0} end
return {'run', ticket.replica, ticket.slot, tonumber(ticket.strange) or 0}
