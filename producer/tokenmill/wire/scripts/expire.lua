-- Settle requests that wait beyond their deadline. A running one is its owner's: the engine looks at every step.
-- KEYS deadlines, not_before, then per request: job, result, group, group_done
-- ARGV group_ttl_s, n, then per request: id, group

local deadlines, not_before = key(), key()
local group_ttl_s, count = arg(), tonumber(arg())
local now = now_ms()
local expired = 0

local function expire(keys, id, group)
  local job = is_hash(keys.job) and read_job(keys.job)
  if not job or FINAL[job.state] then return redis.call('ZREM', deadlines, id) * 0 end
  if job.state == 'running' or job.group ~= group or not is_past_deadline(job, now) then return 0 end
  settle(keys, id, job, 'expired', folded_terminal(keys, job, 'expired', 'expired', now), now, deadlines, not_before,
    group_ttl_s)
  return 1
end

for _ = 1, count do expired = expired + expire(job_keys(), arg(), arg()) end
return expired
