-- Take over what a dead worker held: running jobs go to the resume lane under a new fence, entries that it read and
-- never began go back uncounted (raw ones become jobs first, under the id their producer waits for).
-- KEYS workers, dead_workers, deadlines, not_before, dead letters, lanes x5, then per claim: job, result, group, group_done
-- ARGV reaper, dead, group_ttl_s, dead_maxlen, max_crashes, n,
--      then per claim: lane, entry, id, group, is_raw (1: the submission follows)

local workers, dead_workers, deadlines, not_before, dead_letters = key(), key(), key(), key(), key()
local lanes = lane_keys()
local reaper, dead, group_ttl_s, dead_maxlen, max_crashes, count =
  arg(), arg(), arg(), arg(), tonumber(arg()), tonumber(arg())
local now = now_ms()
local reaped = 0

if not redis.call('ZSCORE', workers, reaper) then return redis.error_reply('FENCED ' .. reaper .. ' has no lease') end
if not redis.call('ZSCORE', dead_workers, dead) then return 0 end

local function requeue(claim, job)
  redis.call('HINCRBY', claim.keys.job, 'fence', 1)
  redis.call('HSET', claim.keys.job, 'state', 'queued', 'worker', '', 'lane', '0',
    'entry', enqueue(lanes['0'], claim.id, job.group))
end

-- A request that killed its owners again and again without a token of progress is not tried for ever.
local function give_up(claim, job)
  local failure = {'worker_crashed', 'the workers that ran this request died ' .. job.crashed .. ' times'}
  dead_letter(dead_letters, dead_maxlen, failure[1], claim)
  settle(claim.keys, claim.id, job, 'dead', folded_terminal(claim.keys, job, 'error', 'error', now, failure), now,
    deadlines, not_before, group_ttl_s)
end

local function take_over(claim, job)
  drop_entry(lanes, claim.lane, claim.entry)
  if job.state == 'running' and job.published <= job.base then
    job.crashed = redis.call('HINCRBY', claim.keys.job, 'crashed', 1)
  end
  if job.state == 'running' and job.crashed >= max_crashes then give_up(claim, job) else requeue(claim, job) end
  return 1
end

local function reap(claim)
  if not is_pending(lanes[claim.lane], claim.entry, dead) then return 0 end
  local job = read_job(claim.keys.job)
  if not job and claim.raw then
    create_job(claim.keys, claim.id, claim.raw, 'queued', claim.lane, claim.entry, accepted_at(claim.entry), deadlines)
    job = read_job(claim.keys.job)
  end
  local is_current = job and job.lane == claim.lane and job.entry == claim.entry and not FINAL[job.state]
  if is_current and job.group ~= claim.group then return wrong_group(claim.id) end
  if is_current then return take_over(claim, job) end
  if claim.raw and job and job.entry ~= claim.entry and job.digest ~= claim.raw.digest then
    dead_letter(dead_letters, dead_maxlen, 'conflict', claim, 'body', claim.raw.body)
  end
  drop_entry(lanes, claim.lane, claim.entry)
  return 0
end

for _ = 1, count do
  local claim = next_claim()
  local outcome = reap(claim)
  if type(outcome) == 'table' then return outcome end
  reaped = reaped + outcome
end
return reaped
