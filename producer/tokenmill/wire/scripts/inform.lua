-- Refresh what a registered worker tells about itself; answers whether somebody looks at the batches.
-- KEYS workers, worker_info, watch
-- ARGV worker, info_ttl_ms, info fields

local workers, worker_info, watch, worker = key(), key(), key(), arg()
local info_ttl_ms, info = arg(), fields_arg()

if not redis.call('ZSCORE', workers, worker) then return 0 end
redis.call('HSET', worker_info, 'worker', worker, unpack(info))
redis.call('PEXPIRE', worker_info, info_ttl_ms)
return redis.call('EXISTS', watch)
