-- Begin a day's window with what Postgres knows. ARGV: then for each window: subject, metric, count, bucket, amount, …
local i = 1
while i <= #ARGV do
  local subject, metric, count = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local key, window, total = window_key(subject, metric), WINDOWS[metric], 0
  local oldest = math.floor(NOW / window.width) - window.count
  if call('HSETNX', key, 'from', oldest) == 1 then
    for at = i + 3, i + 1 + count * 2, 2 do
      if tonumber(ARGV[at]) >= oldest then
        call('HINCRBY', key, ARGV[at], ARGV[at + 1])
        total = total + tonumber(ARGV[at + 1])
      end
    end
    call('HINCRBY', key, 'total', total)
    call('PEXPIRE', key, (window.count + 2) * window.width)
  end
  i = i + 3 + count * 2
end
return 1
