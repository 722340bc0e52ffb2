-- Under which versions rights and models stand. ARGV: the new ones where there are none.
call('SETNX', RIGHTS, ARGV[1])
call('SETNX', CATALOG, ARGV[1])
return {call('GET', RIGHTS), call('GET', CATALOG)}
