-- The engine failed on a request: it comes again after a while, where what was told is kept and continued; `exhausted`
-- says that it came often enough. The first write frees memory, as in finish.
-- KEYS not_before, cancels, lanes x5, then per job: job
-- ARGV worker, number of backoffs, backoffs in ms, n, then per job: id, fence

local not_before, cancels, lanes = key(), key(), lane_keys()
local worker, backoffs = arg(), {}
for i = 1, tonumber(arg()) do backoffs[i] = tonumber(arg()) end
local count, now = tonumber(arg()), now_ms()
local replies = {}

local function retry(job_key, id, fence)
  local job = read_job(job_key)
  if not owns(job, worker, fence) then return 'fenced' end
  local backoff_ms = backoffs[(tonumber(redis.call('HGET', job_key, 'failed')) or 0) + 1]
  if not backoff_ms then return 'exhausted' end
  drop_entry(lanes, job.lane, job.entry)
  redis.call('SREM', cancels, id)
  redis.call('HINCRBY', job_key, 'failed', 1)
  redis.call('HSET', job_key, 'state', 'scheduled', 'worker', '', 'lane', lane_to_resume(job), 'entry', '')
  redis.call('ZADD', not_before, integer(now + backoff_ms), id)
  return 'ok'
end

for i = 1, count do replies[i] = retry(key(), arg(), arg()) end
return replies
