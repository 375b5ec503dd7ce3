-- Declare a worker dead, so that a late renewal of its is answered `fenced` before its jobs are touched.
-- KEYS workers, dead_workers
-- ARGV reaper, dead

local workers, dead_workers = key(), key()
local reaper, dead = arg(), arg()
local now = now_ms()

if not redis.call('ZSCORE', workers, reaper) then return redis.error_reply('FENCED ' .. reaper .. ' has no lease') end
local lease = redis.call('ZSCORE', workers, dead)
if lease and tonumber(lease) > now then return 0 end
redis.call('ZREM', workers, dead)
redis.call('ZADD', dead_workers, 'NX', integer(now), dead)
return 1
