-- Queue requests whose not-before time has come, each in its own lane; a retried one's is the resume lane.
-- KEYS not_before, lanes x5, then per request: job
-- ARGV n, then per request: id

local not_before, lanes = key(), lane_keys()
local count, now = tonumber(arg()), now_ms()
local promoted = 0

local function promote(job_key, id)
  local due = tonumber(redis.call('ZSCORE', not_before, id) or '') or math.huge
  if due > now then return 0 end
  redis.call('ZREM', not_before, id)
  local job = is_hash(job_key) and read_job(job_key)
  if not job or job.state ~= 'scheduled' then return 0 end
  local lane = lanes[job.lane] and job.lane or '0'
  redis.call('HSET', job_key, 'state', 'queued', 'lane', lane, 'entry', enqueue(lanes[lane], id, job.group))
  return 1
end

for _ = 1, count do promoted = promoted + promote(key(), arg()) end
return promoted
