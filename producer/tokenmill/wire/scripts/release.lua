-- A draining worker hands jobs back, uncounted: to the resume lane (a quarantined one to its own), where what was told
-- is kept and continued.
-- KEYS lanes x5, cancels, then per job: job
-- ARGV worker, n, then per job: id, fence

local lanes, cancels = lane_keys(), key()
local worker, count = arg(), tonumber(arg())
local released = 0

local function release(job_key, id, fence)
  local job = read_job(job_key)
  if not owns(job, worker, fence) then return 0 end
  drop_entry(lanes, job.lane, job.entry)
  redis.call('SREM', cancels, id)
  local lane = lane_to_resume(job)
  redis.call('HSET', job_key, 'state', 'queued', 'worker', '', 'lane', lane, 'entry', enqueue(lanes[lane], id, job.group))
  redis.call('HINCRBY', job_key, 'handed_back', 1)
  return 1
end

for _ = 1, count do released = released + release(key(), arg(), arg()) end
return released
