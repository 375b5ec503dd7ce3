-- Append deltas to result streams. A delta is applied if and only if it starts where the stream ends; one that is told
-- already is left out; anything else is a gap, answered with the offset to go on from.
-- KEYS per job: job, result
-- ARGV worker, n, then per job: fence, epoch, deltas

local worker, count = arg(), tonumber(arg())
local now = now_ms()
local replies = {}

for i = 1, count do
  local keys = {job = key(), result = key()}
  local fence, epoch, deltas = arg(), tonumber(arg()), deltas_arg()
  local job = read_job(keys.job)
  if not owns(job, worker, fence) or job.epoch ~= epoch then
    replies[i] = {'fenced', 0, 0}
  else
    local fresh, published = plan_deltas(job.published, deltas)
    if fresh then append_deltas(keys, job, fresh, published, now) end
    replies[i] = {fresh and 'ok' or 'gap', job.published, job.cancel == '1' and 1 or 0}
  end
end
return replies
