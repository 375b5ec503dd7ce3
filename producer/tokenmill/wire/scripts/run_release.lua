-- The execution that has a bulk run's lease gives it back; any other one changes nothing.
-- KEYS run, leases
-- ARGV run, owner, fence

local run, leases = key(), key()
local name, owner, fence = arg(), arg(), arg()

local known = redis.call('HMGET', run, 'owner', 'fence')
if known[1] ~= owner or known[2] ~= fence then return 0 end
redis.call('HSET', run, 'owner', '')
return redis.call('ZREM', leases, name)
