-- Take a bulk run from an execution whose lease ran out, which is fenced by that. Whoever does so has one more lease's
-- time to queue the run again and to release it; if that one dies too, the next one finds it here.
-- KEYS run, leases
-- ARGV run, ttl_ms, run_ttl_s

local run, leases = key(), key()
local name, ttl_ms, run_ttl_s = arg(), tonumber(arg()), arg()

local now = now_ms()
local until_ms = redis.call('ZSCORE', leases, name)
if not until_ms or tonumber(until_ms) > now then return {0} end
local fence = redis.call('HINCRBY', run, 'fence', 1)
local was_owned = (redis.call('HGET', run, 'owner') or '') ~= ''
local retaken = redis.call('HINCRBY', run, 'retaken', was_owned and 1 or 0)
redis.call('HSET', run, 'owner', '')
redis.call('EXPIRE', run, run_ttl_s)
redis.call('ZADD', leases, integer(now + ttl_ms), name)
return {1, integer(fence), retaken, redis.call('HEXISTS', run, 'stop')}
