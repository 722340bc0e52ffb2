-- Begin a day's window with what Postgres knows. ARGV: then for each window: subject, metric, count, bucket, amount, …
local i = 1
while i <= #ARGV do
  local subject, metric, count = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local key, window = windows_of(subject), WINDOWS[metric]
  if not used_by(subject, {metric})[metric] then
    local used = {total = 0, from = window.oldest, bucket = window.now, amount = 0}
    for at = i + 3, i + 1 + count * 2, 2 do
      local bucket, amount = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
      if bucket >= window.oldest then used.total = used.total + amount end
      if bucket == window.now then used.amount = amount
      elseif bucket >= window.oldest then call('HSET', key, bucket_name(metric, bucket), amount) end
    end
    call('HSET', key, metric, written(used))
    call('PEXPIRE', key, WINDOWS_MS)
  end
  i = i + 3 + count * 2
end
return 1
