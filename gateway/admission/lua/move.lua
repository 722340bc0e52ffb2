-- The replica was lost: give it back and go before everybody else to another one.
-- ARGV: ticket, process, outcome ('lost' | '')
local ticket = ticket_of(ARGV[1])
if not ticket then return {'gone'} end
if ticket.state == 'run' then
  vacate(ticket, ARGV[3])
  ticket.avoid = ticket.avoid == '' and ticket.replica or ticket.avoid .. ',' .. ticket.replica
  ticket.state, ticket.class, ticket.since, ticket.moved = 'wait', 0, NOW, true
  ticket.replica, ticket.slot = '', -1
  save(ticket)
  enqueue(ticket)
end
dispatch(ticket.model, ticket.id)
ticket = ticket_of(ARGV[1])
if ticket.state == 'wait' then return {'wait', 1, 0} end
return {'run', ticket.replica, ticket.slot, ticket.strange}
