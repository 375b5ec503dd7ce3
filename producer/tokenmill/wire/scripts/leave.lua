-- A worker goes, or a dead one is forgotten, once nothing is pending for it: DELCONSUMER drops pending entries for ever.
-- KEYS workers, dead_workers, worker_info, cancels, lanes x5
-- ARGV worker

local workers, dead_workers, worker_info, cancels, lanes = key(), key(), key(), key(), lane_keys()
local worker = arg()

for _, lane in ipairs(LANES) do
  local pending = redis.pcall('XPENDING', lanes[lane], GROUP, '-', '+', 1, worker)
  if not pending.err and #pending > 0 then return 0 end
end
for _, lane in ipairs(LANES) do redis.pcall('XGROUP', 'DELCONSUMER', lanes[lane], GROUP, worker) end
redis.call('ZREM', workers, worker)
redis.call('ZREM', dead_workers, worker)
redis.call('DEL', worker_info, cancels)
return 1
