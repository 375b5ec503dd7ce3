-- Append deltas to result streams. A delta is applied if and only if it starts where the stream ends; one that is told
-- already is left out; anything else is a gap, answered with the offset to go on from.
-- KEYS per job: job, result
-- ARGV worker, n, then per job: fence, epoch, deltas

local worker, count = arg(), tonumber(arg())
local now = now_ms()
local replies = {}
local FIELDS = {'fence', 'worker', 'epoch', 'published', 'cancel', 'first_token_ms'}

for i = 1, count do
  local keys = {job = key(), result = key()}
  local fence, epoch, deltas = arg(), tonumber(arg()), deltas_arg()
  local job = read_fields(keys.job, FIELDS)
  if not owns(job, worker, fence) or job.epoch ~= epoch then
    replies[i] = {'fenced', 0, 0}
  else
    local fresh, published = plan_deltas(job.published, deltas)
    if fresh and #fresh > 0 then redis.call('HSET', keys.job, append_deltas(keys, job, fresh, published, now)) end
    replies[i] = {fresh and 'ok' or 'gap', job.published, job.cancel == '1' and 1 or 0}
  end
end
return replies
