-- A registered worker begins what it has read: each claim gets a new fence, or is settled here and never reaches it.
-- Beginning twice gives the same fence again, so that a lost reply costs nothing.
-- KEYS workers, deadlines, not_before, dead, lanes x5, then per claim: job, result, group, group_done
-- ARGV worker, fingerprint ('' = unknown), group_ttl_s, dead_maxlen, n,
--      then per claim: lane, entry, id, group, is_raw (1: the submission follows)

local workers, deadlines, not_before, dead, lanes = key(), key(), key(), key(), lane_keys()
local worker, fingerprint, group_ttl_s, dead_maxlen, count = arg(), arg(), arg(), arg(), tonumber(arg())
local now = now_ms()
local now_text = integer(now)
local replies = {}
local FIELDS = {'fence', 'body', 'published', 'epoch', 'failed', 'crashed', 'fingerprint', 'accepted_ms', 'deadline_ms',
  'first_token_ms', 'result_ttl_s', 'group', 'worker', 'lane', 'entry', 'cancel', 'digest'} -- the first 12 are replied

if not redis.call('ZSCORE', workers, worker) then return redis.error_reply('FENCED ' .. worker .. ' has no lease') end

local function skip(claim)
  drop_entry(lanes, claim.lane, claim.entry)
  return {'skipped', claim.id}
end

-- The first request under this id is undisturbed.
local function refuse(claim)
  drop_entry(lanes, claim.lane, claim.entry)
  dead_letter(dead, dead_maxlen, 'conflict', claim, 'body', claim.raw.body)
  return {'conflict', claim.id}
end

local function finalize(claim, job, state)
  drop_entry(lanes, claim.lane, claim.entry)
  settle(claim.keys, claim.id, job, state, folded_terminal(claim.keys, job, state, state, now), now, deadlines,
    not_before, group_ttl_s)
  return {state, claim.id}
end

-- Another model, tokenizer or template continues differently: start over, and say so to the readers.
local function reset(claim, job, told)
  job.epoch, job.published = job.epoch + 1, 0
  redis.call('XADD', claim.keys.result, stream_id(job, '-0'), 'type', 'reset')
  redis.call('HSET', claim.keys.job, 'epoch', integer(job.epoch), 'published', 0)
  told[4], told[5] = '0', integer(job.epoch)
end

-- One write, not one a field: each is a command of its own in the append-only file.
local function take(claim, job, told)
  if job.published > 0 and fingerprint ~= '' and job.fingerprint ~= fingerprint then reset(claim, job, told) end
  told[2] = integer((job.fence == '' and 0 or tonumber(job.fence)) + 1)
  told[8] = fingerprint ~= '' and fingerprint or job.fingerprint
  redis.call('HSET', claim.keys.job, 'fence', told[2], 'state', 'running', 'worker', worker, 'started_ms',
    now_text, 'base', job.published == 0 and '0' or integer(job.published), 'fingerprint', told[8])
end

local function begun(claim, told)
  return {'begun', claim.id, now_text, unpack(told, 2, 13)}
end

local function begin(claim)
  local job, told = read_fields(claim.keys.job, FIELDS)
  if not job and not claim.raw then return skip(claim) end
  if not job then
    create_job(claim.keys, claim.id, claim.raw, 'queued', claim.lane, claim.entry, accepted_at(claim.entry), deadlines)
    job, told = read_fields(claim.keys.job, FIELDS)
  end
  if job.lane ~= claim.lane or job.entry ~= claim.entry then
    if claim.raw and claim.raw.digest ~= job.digest then return refuse(claim) end
    return skip(claim)
  end
  if job.group ~= claim.group then return wrong_group(claim.id) end
  if FINAL[job.state] then return skip(claim) end
  if job.state == 'running' and job.worker == worker then return begun(claim, told) end
  if job.cancel == '1' then return finalize(claim, job, 'cancelled') end
  if is_past_deadline(job, now) then return finalize(claim, job, 'expired') end
  take(claim, job, told)
  return begun(claim, told)
end

for i = 1, count do
  local claim = next_claim()
  replies[i] = begin(claim)
  if replies[i].err then return replies[i] end
end
return replies
