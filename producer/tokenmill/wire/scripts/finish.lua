-- The owner's final word: acked if and only if the terminal entry is there, and never two of them. The first write
-- frees memory, so that a server at its limit still lets requests finish.
-- KEYS deadlines, not_before, cancels, lanes x5, then per job: job, result, group, group_done
-- ARGV worker, group_ttl_s, n, then per job: id, fence, epoch, group, state, num_tokens ('' = as many as there are),
--      deltas, terminal fields

local deadlines, not_before, cancels, lanes = key(), key(), key(), lane_keys()
local worker, group_ttl_s, count = arg(), arg(), tonumber(arg())
local now = now_ms()
local replies = {}
local FIELDS = {'fence', 'worker', 'lane', 'entry', 'epoch', 'published', 'cancel', 'group', 'result_ttl_s',
  'deadline_ms', 'first_token_ms'}

local function finish(keys, id, fence, epoch, group, state, num_tokens, deltas, terminal)
  local job = read_fields(keys.job, FIELDS)
  if job and FINAL[job.state] and job.worker == worker and job.fence == fence then return {'ok', job.published} end
  if not owns(job, worker, fence) or job.epoch ~= epoch then return {'fenced', 0} end
  if job.group ~= group then return wrong_group(id) end
  local fresh, published = plan_deltas(job.published, deltas)
  if not fresh or (num_tokens ~= '' and tonumber(num_tokens) ~= published) then return {'gap', job.published} end
  drop_entry(lanes, job.lane, job.entry)
  if job.cancel == '1' then redis.call('SREM', cancels, id) end
  unlist(id, job, deadlines, not_before)
  local told = {append_deltas(keys, job, fresh, published, now)}
  settle(keys, id, job, state, terminal, now, deadlines, not_before, group_ttl_s, unpack(told))
  return {'ok', published}
end

for i = 1, count do
  replies[i] = finish(job_keys(), arg(), arg(), tonumber(arg()), arg(), arg(), arg(), deltas_arg(), fields_arg())
  if replies[i].err then return replies[i] end
end
return replies
