-- End a request on which the other transitions fail, because somebody wrote into its keys: what stands in the way is
-- removed, so that its reader is told. Only for its owner, or for whom its entry is pending.
-- KEYS dead, workers, deadlines, not_before, cancels, lanes x5, job, result, group, group_done
-- ARGV worker, fence ('' = never begun), lane, entry, id, group, code, message, dead_maxlen, result_ttl_s, group_ttl_s

local dead, workers, deadlines, not_before, cancels, lanes = key(), key(), key(), key(), key(), lane_keys()
local keys = job_keys()
local worker, fence, claim = arg(), arg(), {lane = arg(), entry = arg(), id = arg()}
local group, failure, dead_maxlen, result_ttl_s, group_ttl_s = arg(), {arg(), arg()}, arg(), arg(), arg()
local now = now_ms()

local function is_of_type(name, wanted)
  local found = redis.call('TYPE', name).ok
  return found == wanted or found == 'none', found
end

-- What all requests share is nobody's fault: then the answer is an error, and the caller tries again later.
local function broken_share()
  local shared = {{dead, 'stream'}, {workers, 'zset'}, {deadlines, 'zset'}, {not_before, 'zset'}, {cancels, 'set'}}
  for _, lane in ipairs(LANES) do shared[#shared + 1] = {lanes[lane], 'stream'} end
  for _, pair in ipairs(shared) do
    local is_good, found = is_of_type(pair[1], pair[2])
    if not is_good then return redis.error_reply('CORRUPTED ' .. pair[1] .. ' is a ' .. found) end
  end
end

local function read_what_is_left()
  local job = is_hash(keys.job) and read_job(keys.job)
  if not job then return {state = '', worker = '', published = 0, epoch = 0, accepted_ms = now, body = ''} end
  job.body = redis.call('HGET', keys.job, 'body') or ''
  return job
end

-- What was told is kept, unless it is no result stream at all, or one that nothing can be appended to.
local function tell(job)
if not is_hash(keys.job) then redis.call('DEL', keys.job) end
  if not is_of_type(keys.result, 'stream') then redis.call('DEL', keys.result) end
  local is_readable, terminal = pcall(folded_terminal, keys, job, 'error', 'error', now, failure)
  if is_readable and not redis.pcall('XADD', keys.result, stream_id(job, '-1'), unpack(terminal)).err then return end
  redis.call('DEL', keys.result)
  redis.call('XADD', keys.result, stream_id(job, '-1'),
    unpack(folded_terminal(keys, job, 'error', 'error', now, failure)))
end

local function count(state)
  if group == '' or not is_of_type(keys.group, 'hash') or not is_of_type(keys.group_done, 'stream') then return end
  count_in_group(keys, group, state, group_ttl_s)
  redis.call('XADD', keys.group_done, '*', 'id', claim.id, 'state', state)
  redis.call('EXPIRE', keys.group_done, group_ttl_s)
end

local broken = broken_share()
if broken then return broken end
local is_ours = is_pending(lanes[claim.lane], claim.entry, worker)
local job = read_what_is_left()
if not is_ours and not owns(job, worker, fence) then return 0 end
drop_entry(lanes, claim.lane, claim.entry)
dead_letter(dead, dead_maxlen, failure[1] .. ': ' .. failure[2], claim, 'body', job.body)
if FINAL[job.state] or (job.state == 'running' and job.worker ~= worker) then return 1 end
redis.call('ZREM', deadlines, claim.id)
redis.call('ZREM', not_before, claim.id)
redis.call('SREM', cancels, claim.id)
tell(job)
if not is_hash(keys.job) then redis.call('DEL', keys.job) end
redis.call('HSET', keys.job, 'version', VERSION, 'state', 'dead', 'published', integer(job.published),
  'accepted_ms', integer(job.accepted_ms), 'finished_ms', integer(now))
count('dead')
redis.call('EXPIRE', keys.result, result_ttl_s)
redis.call('EXPIRE', keys.job, result_ttl_s)
return 1
