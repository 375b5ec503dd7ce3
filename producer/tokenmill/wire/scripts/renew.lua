-- Extend a lease and read the cancel requests that came in; a worker that lost its lease is told so.
-- KEYS workers, worker_info, cancels
-- ARGV worker, ttl_ms, info_ttl_ms

local workers, worker_info, cancels = key(), key(), key()
local worker, ttl_ms, info_ttl_ms = arg(), tonumber(arg()), arg()

if not redis.call('ZSCORE', workers, worker) then return {1, {}} end
redis.call('ZADD', workers, integer(now_ms() + ttl_ms), worker)
redis.call('PEXPIRE', worker_info, info_ttl_ms)
return {0, redis.call('SMEMBERS', cancels)}
