-- A worker takes its lease under a name of its own; also makes the lanes' group where it is missing.
-- KEYS workers, dead_workers, worker_info, lanes x5
-- ARGV worker, ttl_ms, info_ttl_ms, info fields

local workers, dead_workers, worker_info, lanes = key(), key(), key(), lane_keys()
local worker, ttl_ms, info_ttl_ms, info = arg(), tonumber(arg()), arg(), fields_arg()

if redis.call('ZSCORE', dead_workers, worker) then return redis.error_reply('FENCED ' .. worker .. ' is being reaped') end
for _, lane in ipairs(LANES) do redis.pcall('XGROUP', 'CREATE', lanes[lane], GROUP, '0', 'MKSTREAM') end
redis.call('ZADD', workers, integer(now_ms() + ttl_ms), worker)
redis.call('HSET', worker_info, 'worker', worker, unpack(info))
redis.call('PEXPIRE', worker_info, info_ttl_ms)
return 1
