-- What every script of the gateway shares. Valkey runs one script at a time, so each is one indivisible step; its clock
-- is the only one. Everything kept here can be lost: windows are read again from Postgres, tickets said again by those
-- who hold them. Keys, after what they all begin with (G, from scripts.py):
--
--   epoch                  since when this memory exists
--   processes              who holds tickets, by the time of the last heartbeat; of:PROCESS its tickets
--   t:TICKET               one request, waiting or running
--   m:MODEL:…              vtc: counters of people · w0 w1 w2: people who wait, by counter · qCLASS:PERSON: their tickets
--                          weights · facts · replicas · thread:THREAD: the slot that read it last
--   r:REPLICA              open requests, KV tokens, slots (made: used so far; free: those of them that are free, coldest
--                          first; of each s: ticket, p: last person, h: last thread) · b:REPLICA its breaker
--   l:SUBJECT              its sliding windows and open requests (windows.lua)

local RIGHTS, CATALOG = 'llamaproj:version:rights', 'llamaproj:version:catalog'
local call = redis.call
local time = call('TIME')
local NOW = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local PROMPT_WEIGHT, COMPLETION_WEIGHT = 1, 2
local FORGET_MS = 3600000
