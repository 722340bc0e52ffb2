-- Let a request in: versions, limits, reservation, then a slot at once or a place in the line.
-- ARGV: ticket, process, rights, catalog, new version, model, person, weight, class, prompt, completion (-1: unsaid), kv,
--   thread, avoid, most waiting, light, forced ('' | 'wait' | 'run'), replica, slot, granted, charged,
--   then for each subject: name and six limits (-1: none).
-- Answers: run … | wait … | stale rights catalog | seed subject:metric … | limit … | never … | full … | settling ms

local id, process, model, person = ARGV[1], ARGV[2], ARGV[6], ARGV[7]
local weight, class, prompt = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local completion, kv, thread, avoid = tonumber(ARGV[11]), tonumber(ARGV[12]), ARGV[13], ARGV[14]
local light, forced = ARGV[16] == '1', ARGV[17]
local FIRST_SUBJECT, PER_SUBJECT = 22, 7
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
  return {'run', ticket.replica, ticket.slot, tonumber(ticket.strange) or 0}
end

-- The answer to this question may have been lost on its way.
if call('EXISTS', G .. 't:' .. id) == 1 then return answer(ticket_of(id)) end

-- Limits ---------------------------------------------------------------------------------------------------------------

local subjects, unseeded, reserve = {}, {}, completion
for i = FIRST_SUBJECT, #ARGV, PER_SUBJECT do
  local subject = {name = ARGV[i], limits = {}}
  for metric = 1, CONCURRENT do
    local limit = tonumber(ARGV[i + metric])
    if limit >= 0 then
      subject.limits[metric] = limit
      if (metric == 4 or metric == 5) and forced == ''
          and call('HEXISTS', window_key(subject.name, metric), 'from') == 0 then
        unseeded[#unseeded + 1] = subject.name .. ':' .. metric
      end
      if completion < 0 and (metric == 3 or metric == 5) then
        reserve = math.min(reserve < 0 and UNSAID_TOKENS or reserve, limit)
      end
    end
  end
  subjects[#subjects + 1] = subject
end
if reserve < 0 then reserve = UNSAID_TOKENS end
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
  for metric = 1, 5 do
    local limit = subject.limits[metric]
    if limit then
      local key, window = window_key(subject.name, metric), WINDOWS[metric]
      local used, from, head = slide(key, window)
      local need = amount(metric, limit)
      if forced == '' then
        if need > limit then return {'never', i, metric, limit, used} end
        if used + math.max(1, need) > limit then
          return {'limit', i, metric, limit, used, room_in(key, window, from, head, used + math.max(1, need) - limit)}
        end
      end
      if metric == 1 then tight_requests = note(limit - used - need, limit, tight_requests)
      elseif metric <= 3 then tight_tokens = note(limit - used - need, limit, tight_tokens) end
    end
  end
  local most = subject.limits[CONCURRENT]
  if most and forced == '' and call('SCARD', window_key(subject.name, CONCURRENT)) >= most then
    local service = tonumber(call('HGET', of(model, 'facts'), 'service') or 0)
    return {'limit', i, CONCURRENT, most, most, math.max(1000, math.floor(service))}
  end
end

local facts = of(model, 'facts')
local now = call('HMGET', facts, 'waiting', 'last')
local waiting, last = tonumber(now[1] or 0), now[2]
if forced == '' and not light and waiting >= tonumber(ARGV[15]) then
  local _, _, clear = places(model)
  return {'full', math.floor(clear)}
end

-- Reservation ----------------------------------------------------------------------------------------------------------

local reserved, names = {}, {}
for _, subject in ipairs(subjects) do
  for metric = 1, 5 do
    local limit = subject.limits[metric]
    if limit then
      local key, need = window_key(subject.name, metric), amount(metric, limit)
      -- What is said again was counted when it was said first.
      local bucket = add(key, WINDOWS[metric], need)
      reserved[#reserved + 1] = key .. ' ' .. metric .. ' ' .. bucket .. ' ' .. need .. ';'
    end
  end
  if subject.limits[CONCURRENT] then
    local key = window_key(subject.name, CONCURRENT)
    call('SADD', key, id)
    call('PEXPIRE', key, 86400000)
    names[#names + 1] = subject.name
  end
end

local ticket = {id = id, model = model, person = person, class = class, weight = weight, prompt = prompt, kv = kv,
  state = 'wait', arrived = NOW, since = NOW, seq = call('HINCRBY', facts, 'seq', 1), process = process, charged = 0,
  thread = thread, avoid = avoid, reserved = table.concat(reserved), subjects = table.concat(names, ' '), moved = ''}
call('HSET', G .. 't:' .. id, 'model', model, 'person', person, 'class', class, 'weight', weight, 'prompt', prompt,
  'kv', kv, 'state', 'wait', 'arrived', NOW, 'since', NOW, 'seq', ticket.seq, 'process', process, 'charged', 0,
  'thread', thread, 'avoid', avoid, 'reserved', ticket.reserved, 'subjects', ticket.subjects)
call('SADD', G .. 'of:' .. process, id)
call('ZADD', G .. 'processes', NOW, process)

local function headers(found)
  local one, two = tight_requests or {-1, -1}, tight_tokens or {-1, -1}
  local reset = (math.floor(NOW / 1000) + 61) * 1000 - NOW
  for _, value in ipairs({one[1], one[2], two[1], two[2], reset}) do found[#found + 1] = value end
  return found
end

if light then
  ticket.avoid, ticket.since = '', 0
  local least
  for _, one in ipairs(replicas) do
    if passes(one.id) then
      local open = tonumber(call('HGET', G .. 'r:' .. one.id, 'open') or 0)
      if not least or open < least[2] then least = {one.id, open} end
    end
  end
  if least then
    call('HSET', G .. 't:' .. id, 'state', 'light', 'replica', least[1], 'slot', -1)
    return headers({'run', least[1], -1, 0})
  end
  finish(id, 0, 0, '')
  return {'nowhere'}
end

if forced == 'run' then
  call('HSET', G .. 't:' .. id, 'state', 'run', 'replica', ARGV[18], 'slot', ARGV[19], 'granted', ARGV[20],
    'charged', ARGV[21])
  occupy(ticket, ARGV[18], tonumber(ARGV[19]))
  return {'run', ARGV[18], tonumber(ARGV[19]), 0}
end

lift(model, person, waiting, last)
local place = waiting <= 0 and find_place(ticket, replicas)
if place then
  if last ~= person then call('HSET', facts, 'last', person) end
  grant(ticket, place)
else
  enqueue(ticket)
  dispatch(model, id)
  ticket = ticket_of(id)
end
return headers(answer(ticket))
