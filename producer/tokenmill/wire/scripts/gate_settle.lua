-- What a request really took, after `gate_admit` has charged what it might take: the difference, to both of its limits.
-- KEYS use
-- ARGV difference (tokens; below 0 when it took less), day (on which it was admitted)

local use = key()
local difference, day = tonumber(arg()), arg()

local known = redis.call('HMGET', use, 'tokens', 'day', 'used')
if not known[1] then return 0 end
redis.call('HSET', use, 'tokens', string.format('%.4f', math.max(0, tonumber(known[1]) - difference)))
if known[2] ~= day then return 0 end
local used = math.max(0, tonumber(known[3]) + difference)
redis.call('HSET', use, 'used', integer(used))
return used
