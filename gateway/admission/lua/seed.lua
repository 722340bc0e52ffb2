-- Add to a day's window what Postgres knows of the time before. ARGV: then for each window: subject, metric, count, bucket,
-- amount, …
local i = 1
while i <= #ARGV do
  local subject, metric, count = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local key, window = windows_of(subject), WINDOWS[metric]
  local used = used_by(subject, {metric})[metric] or begun(metric, 0)
  if not is_whole(used) then
    for at = i + 3, i + 1 + count * 2, 2 do
      local bucket, amount = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
      if bucket >= window.oldest then
        used.total = used.total + amount
        if bucket == window.now then used.amount = used.amount + amount
        else call('HINCRBY', key, bucket_name(metric, bucket), amount) end
      end
    end
    used.whole = 1
    call('HSET', key, metric, written(used))
    call('PEXPIRE', key, WINDOWS_MS)
  end
  i = i + 3 + count * 2
end
return 1
