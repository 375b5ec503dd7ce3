-- Take over what a dead worker held: running jobs go to the resume lane under a new fence, entries that it read and
-- never began go back uncounted (raw ones become jobs first, under the id their producer waits for). A job under which
-- workers died again and again without a token of progress goes to the quarantine lane, where it runs alone; one that
-- brings them down alone, again and again at the same token, is dead.
-- KEYS workers, dead_workers, deadlines, not_before, dead letters, lanes x5, then per claim: job, result, group, group_done
-- ARGV reaper, dead, group_ttl_s, dead_maxlen, max_crashes, max_alone_crashes, n,
--      then per claim: lane, entry, id, group, is_raw (1: the submission follows)

local workers, dead_workers, deadlines, not_before, dead_letters = key(), key(), key(), key(), key()
local lanes = lane_keys()
local reaper, dead, group_ttl_s, dead_maxlen = arg(), arg(), arg(), arg()
local max_crashes, max_alone_crashes, count = tonumber(arg()), tonumber(arg()), tonumber(arg())
local now = now_ms()
local reaped = 0

if not redis.call('ZSCORE', workers, reaper) then return redis.error_reply('FENCED ' .. reaper .. ' has no lease') end
if not redis.call('ZSCORE', dead_workers, dead) then return 0 end

local function requeue(claim, job, lane)
  redis.call('HINCRBY', claim.keys.job, 'fence', 1)
  redis.call('HSET', claim.keys.job, 'state', 'queued', 'worker', '', 'lane', lane,
    'entry', enqueue(lanes[lane], claim.id, job.group))
end

local function give_up(claim, job, alone)
  local failure = {'worker_crashed', string.format(
    'the workers that ran this request died: %.0f times among others, then %.0f times alone, each time after token %.0f',
    job.crashed, alone, job.published)}
  dead_letter(dead_letters, dead_maxlen, failure[1] .. ': ' .. failure[2], claim,
    'body', redis.call('HGET', claim.keys.job, 'body') or '')
  settle(claim.keys, claim.id, job, 'dead', folded_terminal(claim.keys, job, 'error', 'error', now, failure), now,
    deadlines, not_before, group_ttl_s)
end

local function crashed_among_others(claim, job)
  if job.published <= job.base then job.crashed = redis.call('HINCRBY', claim.keys.job, 'crashed', 1) end
  requeue(claim, job, job.crashed >= max_crashes and 'q' or '0')
end

-- As among others, an owner under which the job grew is no witness against it, whatever ended that owner.
local function crashed_alone(claim, job)
  if job.published > job.base then return requeue(claim, job, 'q') end
  local before = redis.call('HMGET', claim.keys.job, 'alone', 'alone_at')
  local alone = 1
  if tonumber(before[2]) == job.published then alone = (tonumber(before[1]) or 0) + 1 end
  redis.call('HSET', claim.keys.job, 'alone', alone, 'alone_at', integer(job.published))
  if alone >= max_alone_crashes then give_up(claim, job, alone) else requeue(claim, job, 'q') end
end

local function take_over(claim, job)
  drop_entry(lanes, claim.lane, claim.entry)
  if job.state ~= 'running' then
    requeue(claim, job, lane_to_resume(job))
  elseif job.lane == 'q' then
    crashed_alone(claim, job)
  else
    crashed_among_others(claim, job)
  end
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
