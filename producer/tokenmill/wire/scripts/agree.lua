-- How many partitions a queue has: whoever comes first decides, and everybody else is told.
-- KEYS count (of partition 0)
-- ARGV partitions

local count, partitions = key(), arg()

local known = redis.call('HGET', count, 'partitions')
if known then return tonumber(known) end
redis.call('HSET', count, 'partitions', partitions)
return tonumber(partitions)
