-- The end of a request: what it really used, its record, and the next one's turn.
-- ARGV: ticket, prompt, completion, outcome ('ok' | 'lost' | ''), record, longest stream. One round trip for all of it.
if ARGV[5] ~= '' then call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[6], '*', KEYS[2], ARGV[5]) end
local ticket = finish(ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4])
if not ticket then return 0 end
dispatch(ticket.model, '')
return 1
