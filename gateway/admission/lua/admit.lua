-- Let a request in: versions, limits, reservation, then a slot at once or a place in the line.
-- ARGV: ticket, process, rights, catalog, new version, model, person, weight, class, prompt, completion (-1: unsaid), kv,
--   thread, avoid, most waiting, light, forced ('' | 'wait' | 'run'), replica, slot, granted, charged,
--   limits: for each subject its name and what is limited, 'user:1 1=60 5=10000;'.
-- Answers: run … | wait … | stale rights catalog | seed subject:metric … | limit … | never … | full … | settling ms

local id, process, model, person = ARGV[1], ARGV[2], ARGV[6], ARGV[7]
local weight, class, prompt = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local completion, kv, thread, avoid = tonumber(ARGV[11]), tonumber(ARGV[12]), ARGV[13], ARGV[14]
local light, forced = ARGV[16] == '1', ARGV[17]
local limits = ARGV[22] or ''
-- What a request that says nothing of its length is taken to write, until it is known.
local UNSAID_TOKENS = 512

local standing = call('MGET', RIGHTS, CATALOG, of(model, 'replicas'))
if forced == '' then
  local rights, catalog = standing[1], standing[2]
  if not rights then
    rights = ARGV[5]
    call('SET', RIGHTS, rights)
  end
  if not catalog then
    catalog = ARGV[5]
    call('SET', CATALOG, catalog)
  end
  if rights ~= ARGV[3] or catalog ~= ARGV[4] or not standing[3] then return {'stale', rights, catalog} end
  local wait = settling()
  if wait > 0 then return {'settling', wait} end
end
local replicas = standing[3] and cjson.decode(standing[3]) or {}

local function answer(ticket)
  if ticket.state == 'wait' then
    local found, count = places(model)
    local mine = found[id] or {count, 0}
    return {'wait', mine[1], mine[2]}
  end
  return {'run', ticket.replica, ticket.slot, ticket.strange}
end

-- The answer to this question may have been lost on its way.
if call('EXISTS', G .. 't:' .. id) == 1 then return answer(ticket_of(id)) end

-- Limits ---------------------------------------------------------------------------------------------------------------

local subjects, unseeded, reserve = {}, {}, completion < 0 and UNSAID_TOKENS or completion
for name, said in string.gmatch(limits, '([^ ;]+)([^;]*);') do
  local subject = {name = name, limits = {}, metrics = {}, needs = {}}
  for metric, limit in string.gmatch(said, '(%d)=(%d+)') do
    metric, limit = tonumber(metric), tonumber(limit)
    if metric == CONCURRENT then
      subject.most = limit
    else
      subject.metrics[#subject.metrics + 1], subject.limits[metric] = metric, limit
    end
  end
  subject.used, subject.open = used_by(subject.name, subject.metrics)
  for _, metric in ipairs(subject.metrics) do
    local known = subject.used[metric]
    if WINDOWS[metric] == DAY and forced == '' and not is_whole(known) then
      unseeded[#unseeded + 1] = subject.name .. ':' .. metric
    end
    if completion < 0 and (metric == 3 or metric == 5) then
      -- Less than that is enough to begin with, as long as something is left.
      reserve = math.max(1, math.min(reserve, subject.limits[metric] - (known and known.total or 0)))
    end
  end
  subjects[#subjects + 1] = subject
end
if #unseeded > 0 then return {'seed', unpack(unseeded)} end

local function amount(metric, limit)
  if metric == 1 then return 1 end
  -- A prompt is only estimated: one that is too long for a whole window is known as such afterwards.
  if metric == 2 or metric == 4 then return math.min(prompt, limit) end
  return reserve
end

local tight_requests, tight_tokens
local function note(remaining, limit, now_best)
  if not now_best or remaining < now_best[2] then return {limit, remaining} end
  return now_best
end

for i, subject in ipairs(subjects) do
  for _, metric in ipairs(subject.metrics) do
    local limit, known = subject.limits[metric], subject.used[metric]
    local used = known and known.total or 0
    local need = amount(metric, limit)
    if forced == '' then
      if need > limit then return {'never', i, metric, limit, used} end
      local excess = used + math.max(1, need) - limit
      if excess > 0 then return {'limit', i, metric, limit, used, room_in(subject.name, metric, known, excess)} end
    end
    subject.needs[metric] = need
    if metric == 1 then tight_requests = note(limit - used - need, limit, tight_requests)
    elseif metric <= 3 then tight_tokens = note(limit - used - need, limit, tight_tokens) end
  end
  if subject.most and forced == '' and subject.open >= subject.most then
    local service = tonumber(call('HGET', of(model, 'facts'), 'service') or 0)
    return {'limit', i, CONCURRENT, subject.most, subject.most, math.max(1000, math.floor(service))}
  end
end

local facts = of(model, 'facts')
local waiting, last = waiting_for(model), call('HGET', facts, 'last')
if forced == '' and not light and waiting >= tonumber(ARGV[15]) then
  local _, _, clear = places(model)
  return {'full', math.floor(clear)}
end

local least
if light then
  for _, one in ipairs(replicas) do
    local open = load_of(one.id).open
    if (not least or open < least.open) and passes(one.id) then least = {id = one.id, open = open} end
  end
  -- Nothing is counted before there is somebody to ask.
  if not least then return {'nowhere'} end
end

-- Reservation ----------------------------------------------------------------------------------------------------------

local reserved = {}
for i, subject in ipairs(subjects) do
  reserved[i] = reserve_of(subject.name, subject.used, subject.open, subject.needs)
end

local ticket = {id = id, model = model, person = person, class = class, weight = weight, prompt = prompt, kv = kv,
  state = 'wait', arrived = NOW, since = NOW, seq = call('HINCRBY', facts, 'seq', 1), process = process, charged = 0,
  thread = thread, avoid = avoid, reserved = table.concat(reserved), replica = '', slot = -1, strange = 0, granted = 0}
call('SADD', G .. 'of:' .. process, id)
call('ZADD', G .. 'processes', NOW, process)

local function headers(found)
  local one, two = tight_requests or {-1, -1}, tight_tokens or {-1, -1}
  local reset = (math.floor(NOW / 1000) + 61) * 1000 - NOW
  for _, value in ipairs({one[1], one[2], two[1], two[2], reset}) do found[#found + 1] = value end
  return found
end

if least then
  ticket.state, ticket.replica = 'light', least.id
  save(ticket)
  return headers(answer(ticket))
end

if forced == 'run' then
  ticket.state, ticket.replica, ticket.slot = 'run', ARGV[18], tonumber(ARGV[19])
  ticket.granted, ticket.charged = tonumber(ARGV[20]), tonumber(ARGV[21])
  occupy(ticket, load_of(ticket.replica))
  save(ticket)
  return answer(ticket)
end

lift(model, person, waiting, last)
local place = waiting <= 0 and find_place(ticket, replicas)
if place then
  if last ~= person then call('HSET', facts, 'last', person) end
  grant(ticket, place)
  save(ticket)
else
  save(ticket)
  enqueue(ticket)
  dispatch(model, id)
  ticket = ticket_of(id)
end
return headers(answer(ticket))
