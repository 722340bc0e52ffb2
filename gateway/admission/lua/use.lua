-- What counts now. ARGV: subjects. For each: five windows and the open requests; -1 where nothing is counted.
local found = {}
for _, subject in ipairs(ARGV) do
  local row = {}
  for metric = 1, 5 do
    local total, _, _, known = slide(window_key(subject, metric), WINDOWS[metric])
    row[metric] = known and total or -1
  end
  row[CONCURRENT] = call('SCARD', window_key(subject, CONCURRENT))
  found[#found + 1] = row
end
return found
