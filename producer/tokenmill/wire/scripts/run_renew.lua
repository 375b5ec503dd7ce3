-- Extend a bulk run's lease; tells whether the run shall stop, or that another execution has it.
-- KEYS run, leases
-- ARGV run, owner, fence, ttl_ms, run_ttl_s, has_progress

local run, leases = key(), key()
local name, owner, fence, ttl_ms, run_ttl_s, has_progress = arg(), arg(), arg(), tonumber(arg()), arg(), arg()

local known = redis.call('HMGET', run, 'owner', 'fence', 'stop')
if known[1] ~= owner or known[2] ~= fence then return {0, 0} end
if has_progress == '1' then redis.call('HDEL', run, 'retaken') end
redis.call('EXPIRE', run, run_ttl_s)
redis.call('ZADD', leases, integer(now_ms() + ttl_ms), name)
redis.call('EXPIRE', leases, run_ttl_s)
return {1, known[3] and 1 or 0}
