-- Sliding windows: what was used of a limit.

-- By metric: requests, prompt and completion tokens a minute; prompt and completion tokens a day.
local MINUTE, DAY = {width = 1000, count = 60}, {width = 1800000, count = 48}
local WINDOWS = {MINUTE, MINUTE, MINUTE, DAY, DAY}
local CONCURRENT = 6

local function window_key(subject, metric) return G .. 'l:' .. subject .. ':' .. metric end

-- What counts now. A bucket counts until its last instant is outside, so no window of that length ever holds more.
local function slide(key, window)
  local head = math.floor(NOW / window.width)
  local oldest = head - window.count
  local known = call('HMGET', key, 'total', 'from')
  local total, from = tonumber(known[1]) or 0, tonumber(known[2])
  if not from then return 0, oldest, head, false end
  if from < oldest then
    if oldest - from > window.count then
      call('DEL', key)
      total = 0
    else
      for bucket = from, oldest - 1 do
        local amount = call('HGET', key, bucket)
        if amount then
          total = total - tonumber(amount)
          call('HDEL', key, bucket)
        end
      end
    end
    from = oldest
    call('HSET', key, 'total', total, 'from', from)
    call('PEXPIRE', key, (window.count + 2) * window.width)
  end
  return total, from, head, true
end

-- Days are begun by the script that knows what was before (seed.lua), minutes by whatever comes first.
local function add(key, window, amount)
  local head = math.floor(NOW / window.width)
  if call('HINCRBY', key, head, amount) == amount then
    if window == MINUTE then call('HSETNX', key, 'from', head - window.count) end
    call('PEXPIRE', key, (window.count + 2) * window.width)
  end
  call('HINCRBY', key, 'total', amount)
  return head
end

-- Correct what was reserved in a bucket, as long as it counts at all.
local function correct(key, window, bucket, difference)
  if difference == 0 then return end
  slide(key, window)
  if call('HEXISTS', key, bucket) == 1 then
    call('HINCRBY', key, bucket, difference)
    call('HINCRBY', key, 'total', difference)
  end
end

-- In how many milliseconds there is room for so much more.
local function room_in(key, window, from, head, excess)
  for bucket = from, head do
    excess = excess - (tonumber(call('HGET', key, bucket) or 0))
    if excess <= 0 then return (bucket + window.count + 1) * window.width - NOW end
  end
  return (window.count + 1) * window.width
end
