-- Cancel requests: one that waits is final at once (its lane entry stays, begin skips it); one that runs is flagged,
-- and its worker's set tells the worker. The caller looked up worker and group before; `moved` asks it to look again.
-- KEYS deadlines, not_before, then per request: job, result, group, group_done, cancels of its worker (or job)
-- ARGV group_ttl_s, cancel_ttl_s, n, then per request: id, worker, group

local deadlines, not_before = key(), key()
local group_ttl_s, cancel_ttl_s, count = arg(), arg(), tonumber(arg())
local now = now_ms()
local replies = {}

local function flag(keys, cancels, id, job, worker)
  redis.call('HSET', keys.job, 'cancel', 1)
  if job.worker ~= worker then return 'moved' end
  redis.call('SADD', cancels, id)
  redis.call('EXPIRE', cancels, cancel_ttl_s)
  return 'flagged'
end

local function cancel(keys, cancels, id, worker, group)
  local job = read_job(keys.job)
  if not job then return 'unknown' end
  if FINAL[job.state] then return 'final' end
  if job.group ~= group then return 'moved' end
  if job.state == 'running' then return flag(keys, cancels, id, job, worker) end
  settle(keys, id, job, 'cancelled', folded_terminal(keys, job, 'cancelled', 'cancelled', now), now, deadlines,
    not_before, group_ttl_s)
  return 'cancelled'
end

for i = 1, count do replies[i] = cancel(job_keys(), key(), arg(), arg(), arg()) end
return replies
