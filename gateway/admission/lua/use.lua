-- What counts now. ARGV: subjects. For each: five windows and the open requests; -1 where nothing is counted.
local found = {}
for _, subject in ipairs(ARGV) do
  local used, open = used_by(subject, {1, 2, 3, 4, 5})
  local row = {}
  for metric = 1, 5 do row[metric] = is_whole(used[metric]) and used[metric].total or -1 end
  row[CONCURRENT] = open
  found[#found + 1] = row
end
return found
