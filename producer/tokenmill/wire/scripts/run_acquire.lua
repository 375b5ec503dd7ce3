-- One execution of a bulk run takes its lease, unless another one holds it. A reply that was lost may be asked for again.
-- KEYS run, leases
-- ARGV run, owner, ttl_ms, run_ttl_s

local run, leases = key(), key()
local name, owner, ttl_ms, run_ttl_s = arg(), arg(), tonumber(arg()), arg()

local now = now_ms()
local holder = redis.call('HGET', run, 'owner') or ''
local is_held = tonumber(redis.call('ZSCORE', leases, name) or '0') > now and holder ~= ''
if is_held and holder ~= owner then return {0, holder} end
local fence = is_held and redis.call('HGET', run, 'fence') or integer(redis.call('HINCRBY', run, 'fence', 1))
redis.call('HSET', run, 'owner', owner)
redis.call('EXPIRE', run, run_ttl_s)
redis.call('ZADD', leases, integer(now + ttl_ms), name)
redis.call('EXPIRE', leases, run_ttl_s)
return {1, fence}
