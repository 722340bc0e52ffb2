-- Sliding windows, and how many requests are open: one hash for each subject, read and written once by a request.
--
--   open            open requests
--   METRIC          what counts now, the oldest bucket that counts, the newest bucket, what was used in that, and 1 if it is
--                   whole: 0 for a day begun by a request that was said again, before anybody knew what was used earlier
--   METRIC:BUCKET   what was used in an older one

-- Metrics as in subjects.py: requests, prompt and completion tokens a minute; prompt and completion tokens a day.
local MINUTE, DAY = {width = 1000, count = 60}, {width = 1800000, count = 48}
local WINDOWS = {MINUTE, MINUTE, MINUTE, DAY, DAY}
local CONCURRENT = 6
-- Longer than anything in them counts.
local WINDOWS_MS = 90000000

for _, window in ipairs({MINUTE, DAY}) do
  window.now = math.floor(NOW / window.width)
  window.oldest = window.now - window.count
end

local function windows_of(subject) return G .. 'l:' .. subject end

local function bucket_name(metric, bucket) return string.format('%d:%d', metric, bucket) end

local function begun(metric, whole)
  local window = WINDOWS[metric]
  return {total = 0, from = window.oldest, bucket = window.now, amount = 0, whole = whole}
end

local function written(used)
  return string.format('%d %d %d %d %d', used.total, used.from, used.bucket, used.amount, used.whole)
end

-- Bring a window to this moment: its newest bucket is the one that is now, and what counts no more is taken out.
-- A bucket counts until its last instant is outside, so no window of that length ever holds more.
local function slide(subject, metric, used)
  local key, window, gone = windows_of(subject), WINDOWS[metric], {}
  call('HSET', key, bucket_name(metric, used.bucket), used.amount)
  for bucket = used.from, math.min(window.oldest - 1, used.from + window.count) do
    gone[#gone + 1] = bucket_name(metric, bucket)
  end
  if #gone > 0 then
    for _, amount in ipairs(call('HMGET', key, unpack(gone))) do used.total = used.total - tonumber(amount or 0) end
    call('HDEL', key, unpack(gone))
  end
  if window.oldest - used.from > window.count then used.total = 0 end
  used.from, used.bucket = window.oldest, window.now
  used.amount = tonumber(call('HGET', key, bucket_name(metric, window.now)) or 0)
  call('HSET', key, metric, written(used))
  call('PEXPIRE', key, WINDOWS_MS)
end

-- What counts of these metrics, nothing for a window that was never begun, and how many requests are open.
local function used_by(subject, metrics)
  local values, used = call('HMGET', windows_of(subject), 'open', unpack(metrics)), {}
  for i, metric in ipairs(metrics) do
    local total, from, bucket, amount, whole = string.match(values[i + 1] or '', '(%S+) (%S+) (%S+) (%S+) (%S+)')
    if total then
      used[metric] = {total = tonumber(total), from = tonumber(from), bucket = tonumber(bucket), amount = tonumber(amount),
        whole = tonumber(whole)}
      if used[metric].bucket ~= WINDOWS[metric].now then slide(subject, metric, used[metric]) end
    end
  end
  return used, tonumber(values[1] or 0)
end

-- Whether a window says all that counts.
local function is_whole(used) return used ~= nil and used.whole == 1 end

-- One more request is open, and has reserved so much of each metric. Days become whole by the script that knows what was
-- before (seed.lua), minutes are it from the beginning. What was reserved where, for `return_to`.
local function reserve_of(subject, used, open, needs)
  local fields, said, is_new = {'open', open + 1}, subject, next(needs) == nil
  for metric, need in pairs(needs) do
    local window, one = WINDOWS[metric], used[metric]
    is_new = is_new or not one
    one = one or begun(metric, window == MINUTE and 1 or 0)
    one.total, one.amount = one.total + need, one.amount + need
    fields[#fields + 1] = metric
    fields[#fields + 1] = written(one)
    said = said .. string.format(' %d:%d:%d', metric, window.now, need)
  end
  call('HSET', windows_of(subject), unpack(fields))
  if is_new then call('PEXPIRE', windows_of(subject), WINDOWS_MS) end
  return said .. ';'
end

-- A request has ended: what it reserved becomes what it used, wherever that counts still.
local function return_to(subject, reserved, prompt, completion)
  local key, metrics, buckets, differences = windows_of(subject), {}, {}, {}
  for metric, bucket, amount in string.gmatch(reserved, '(%d):(%d+):(%d+)') do
    metric, bucket = tonumber(metric), tonumber(bucket)
    local really = completion
    if metric == 1 then really = 1 elseif metric == 2 or metric == 4 then really = prompt end
    if really ~= tonumber(amount) and bucket >= WINDOWS[metric].oldest then
      metrics[#metrics + 1], buckets[metric], differences[metric] = metric, bucket, really - tonumber(amount)
    end
  end
  local used, open = used_by(subject, metrics)
  local fields = {'open', math.max(0, open - 1)}
  for metric, one in pairs(used) do
    one.total = one.total + differences[metric]
    if buckets[metric] == one.bucket then one.amount = one.amount + differences[metric]
    else call('HINCRBY', key, bucket_name(metric, buckets[metric]), differences[metric]) end
    fields[#fields + 1] = metric
    fields[#fields + 1] = written(one)
  end
  call('HSET', key, unpack(fields))
end

-- In how many milliseconds there is room for so much more.
local function room_in(subject, metric, used, excess)
  local window, fields = WINDOWS[metric], {}
  for bucket = window.oldest, window.now - 1 do fields[#fields + 1] = bucket_name(metric, bucket) end
  local amounts = call('HMGET', windows_of(subject), unpack(fields))
  amounts[#fields + 1] = used.amount
  for i, amount in ipairs(amounts) do
    excess = excess - tonumber(amount or 0)
    if excess <= 0 then return (window.oldest + i + window.count) * window.width - NOW end
  end
  return (window.count + 1) * window.width
end
