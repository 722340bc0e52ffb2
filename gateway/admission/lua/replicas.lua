-- Write down what serves a model, as read under a version of the catalog, and let run whoever can now.
-- ARGV: model, version under which it was read, replicas. What is old by now isn't written. Answers the version that is.
call('SETNX', CATALOG, ARGV[2])
local current = call('GET', CATALOG)
if current == ARGV[2] then
  call('SET', of(ARGV[1], 'replicas'), ARGV[3], 'PX', FORGET_MS)
  dispatch(ARGV[1], '')
end
return current
