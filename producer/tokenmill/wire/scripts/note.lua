-- What a front door keeps beside a request: never without an end to its life. What was written first stays.
-- KEYS note
-- ARGV ttl_s, n, then names and values of fields

local note, ttl_s = key(), arg()
local fields = fields_arg()

local told = {}
for i = 1, #fields, 2 do
  if redis.call('HEXISTS', note, fields[i]) == 0 then redis.call('HSET', note, fields[i], fields[i + 1]) end
  told[#told + 1] = redis.call('HGET', note, fields[i])
end
redis.call('EXPIRE', note, ttl_s)
return told
