-- What the transitions share; put before each of them when a script is loaded. Times are server ms.
-- Scripts touch only keys in KEYS, never decode a body, and never do arithmetic on a stream id: an id is built once,
-- from an epoch below 2^21 and an offset below 2^32, which a double holds exactly.

local GROUP = 'w'
local VERSION = '1'
local LANES = {'0', '1', '2', '3', 'q'}
local FINAL = {done = true, failed = true, cancelled = true, expired = true, dead = true}
local NUMBERS = {published = true, epoch = true, accepted_ms = true, crashed = true, base = true}
local JOB_FIELDS = {'fence', 'worker', 'lane', 'entry', 'published', 'epoch', 'group', 'result_ttl_s',
  'deadline_ms', 'cancel', 'digest', 'accepted_ms', 'started_ms', 'first_token_ms', 'fingerprint', 'crashed', 'base'}

local next_key, next_arg = 0, 0

local function key()
  next_key = next_key + 1
  return KEYS[next_key]
end

local function arg()
  next_arg = next_arg + 1
  return ARGV[next_arg]
end

-- Where in ARGV the names and values of an entry's fields stand: first and last index.
local function span_arg()
  local first = next_arg + 2
  next_arg = next_arg + 1 + 2 * tonumber(ARGV[next_arg + 1])
  return first, next_arg
end

local function fields_arg()
  return {unpack(ARGV, span_arg())}
end

local function lane_keys()
  local lanes = {}
  for _, lane in ipairs(LANES) do lanes[lane] = key() end
  return lanes
end

local function job_keys()
  return {job = key(), result = key(), group = key(), group_done = key()}
end

local function integer(number)
  return string.format('%.0f', number)
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Fields of the job's hash, numbers as numbers, fence as the string it is; nil when there is no job. Then what stands
-- there, the state first. Whoever is called for every token reads no more than it needs.
local function read_fields(job_key, names)
  local values = redis.call('HMGET', job_key, 'state', unpack(names))
  if not values[1] then return nil end
  local job = {state = values[1]}
  for i, name in ipairs(names) do
    local value = values[i + 1] or ''
    if NUMBERS[name] then value = tonumber(value) or 0 end
    job[name] = value
  end
  return job, values
end

-- The job's hash without its body.
local function read_job(job_key)
  return read_fields(job_key, JOB_FIELDS)
end

local function is_hash(job_key)
  return redis.call('TYPE', job_key).ok == 'hash'
end

local function owns(job, worker, fence)
  return job and job.state == 'running' and job.worker == worker and job.fence == fence
end

local function stream_id(job, suffix)
  return integer(job.epoch * 4294967296 + job.published) .. suffix
end

-- A lane entry's payload stays in the hash, so moving a job between lanes is cheap.
local function enqueue(lane_key, id, group)
  if group == '' then return redis.call('XADD', lane_key, '*', 'id', id) end
  return redis.call('XADD', lane_key, '*', 'id', id, 'group', group)
end

-- A request that runs alone for a reason waits alone again.
local function lane_to_resume(job)
  return job.lane == 'q' and 'q' or '0'
end

-- Acked and deleted: XLEN minus pending is the true backlog.
local function drop_entry(lanes, lane, entry)
  redis.call('XACK', lanes[lane], GROUP, entry)
  redis.call('XDEL', lanes[lane], entry)
end

local function is_pending(lane_key, entry, worker)
  local ok = redis.pcall('XPENDING', lane_key, GROUP, entry, entry, 1, worker)
  return not ok.err and #ok > 0
end

local function count_in_group(keys, group, name, ttl_s)
  redis.call('HINCRBY', keys.group, name, 1)
  redis.call('EXPIRE', keys.group, ttl_s)
end

-- new: digest, body, group, result_ttl_s, deadline_ms (from acceptance, or ''), group_ttl_s. What is nothing yet is not
-- written: a counter at 0, no worker, no deadline, no group.
local function create_job(keys, id, new, state, lane, entry, accepted_ms, deadlines)
  redis.call('HSET', keys.job, 'version', VERSION, 'state', state, 'lane', lane, 'entry', entry,
    'accepted_ms', integer(accepted_ms), 'digest', new.digest, 'result_ttl_s', new.result_ttl_s, 'body', new.body)
  redis.call('DEL', keys.result)
  if new.deadline_ms ~= '' then
    local deadline = integer(accepted_ms + tonumber(new.deadline_ms))
    redis.call('HSET', keys.job, 'deadline_ms', deadline)
    redis.call('ZADD', deadlines, deadline, id)
  end
  if new.group ~= '' then
    redis.call('HSET', keys.job, 'group', new.group)
    count_in_group(keys, new.group, 'total', new.group_ttl_s)
  end
end

local function submission_args()
  return {digest = arg(), body = arg(), deadline_ms = arg(), result_ttl_s = arg(), group_ttl_s = arg()}
end

local function next_claim()
  local claim = {keys = job_keys(), lane = arg(), entry = arg(), id = arg(), group = arg()}
  if arg() == '1' then
    claim.raw = submission_args()
    claim.raw.group = claim.group
  end
  return claim
end

local function dead_letter(letters, maxlen, reason, claim, ...)
  redis.call('XADD', letters, 'MAXLEN', '~', maxlen, '*', 'reason', reason, 'id', claim.id, 'lane', claim.lane,
    'entry', claim.entry, ...)
end

local function accepted_at(entry)
  return tonumber(string.match(entry, '^(%d+)-'))
end

-- Deltas that are not told yet, in order, and where they end; nil when one of them does not join what is told.
local function plan_deltas(published, deltas)
  local fresh = {}
  for _, delta in ipairs(deltas) do
    if delta.last > published then
      if delta.offset ~= published then return nil end
      published = delta.last
      fresh[#fresh + 1] = delta
    end
  end
  return fresh, published
end

local function deltas_arg()
  local deltas = {}
  for i = 1, tonumber(arg()) do
    local delta = {offset = tonumber(arg()), last = tonumber(arg()), id = arg()}
    delta.first_arg, delta.last_arg = span_arg()
    deltas[i] = delta
  end
  return deltas
end

-- What the hash must say of it is returned, for the caller to write with what else it has to say.
local function append_deltas(keys, job, fresh, published, now)
  for _, delta in ipairs(fresh) do
    redis.call('XADD', keys.result, delta.id, unpack(ARGV, delta.first_arg, delta.last_arg))
  end
  job.published = published
  if job.first_token_ms ~= '' or #fresh == 0 then return 'published', integer(published) end
  return 'published', integer(published), 'first_token_ms', integer(now)
end

-- Off the indexes of what is not final yet. A call that finds one broken shall fail before it tells anything: what it had
-- told by then could not be told again.
local function unlist(id, job, deadlines, not_before)
  if job.deadline_ms ~= '' then redis.call('ZREM', deadlines, id) end
  if job.state == 'scheduled' then redis.call('ZREM', not_before, id) end
  job.deadline_ms = ''
end

-- The final word and all that follows from it. The caller has seen that the job is not final; what else is to be written
-- into its hash comes last.
local function settle(keys, id, job, state, fields, now, deadlines, not_before, group_ttl_s, ...)
  unlist(id, job, deadlines, not_before)
  redis.call('XADD', keys.result, stream_id(job, '-1'), unpack(fields))
  redis.call('HSET', keys.job, 'state', state, 'finished_ms', integer(now), ...)
  if job.group ~= '' then
    count_in_group(keys, job.group, state, group_ttl_s)
    redis.call('XADD', keys.group_done, '*', 'id', id, 'state', state)
    redis.call('EXPIRE', keys.group_done, group_ttl_s)
  end
  redis.call('EXPIRE', keys.result, job.result_ttl_s)
  redis.call('EXPIRE', keys.job, job.result_ttl_s)
end

-- What a result stream has told since its last reset: choice index -> {text, finish_reason}, and the highest index.
local function fold(result_key)
  local choices, top = {}, 0
  for _, entry in ipairs(redis.call('XRANGE', result_key, '-', '+')) do
    local fields = {}
    for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
    if fields.type == 'reset' then
      choices, top = {}, 0
    elseif fields.type == 'delta' then
      local index = tonumber(fields.index or '0')
      local choice = choices[index] or {text = {}}
      choice.text[#choice.text + 1] = fields.text
      choice.finish_reason = fields.finish_reason
      choices[index] = choice
      top = math.max(top, index)
    end
  end
  return choices, top
end

-- The terminal entry of a job that nobody runs: its partial text is what its readers have seen.
local function folded_terminal(keys, job, kind, reason, now, failure)
  local choices, top = fold(keys.result)
  local list = {}
  for index = 0, top do
    local choice = choices[index] or {text = {}}
    list[index + 1] = {index = index, text = table.concat(choice.text), finish_reason = choice.finish_reason or reason}
  end
  local fields = {'type', kind, 'finish_reason', reason, 'text', list[1].text,
    'usage', string.format('{"prompt_tokens":0,"completion_tokens":%.0f,"cached_tokens":0}', job.published),
    'timings', string.format('{"total":%.0f}', now - job.accepted_ms)}
  local function add(name, value) fields[#fields + 1] = name; fields[#fields + 1] = value end
  if top > 0 then add('choices', cjson.encode(list)) end
  if failure then add('error', cjson.encode({code = failure[1], message = failure[2]})) end
  return fields
end

local function is_past_deadline(job, now)
  return job.deadline_ms ~= '' and tonumber(job.deadline_ms) <= now
end

-- Keys of another group were declared: the caller looked before the job was made, or forgot to say.
local function wrong_group(id)
  return redis.error_reply('GROUP the call must name the group of ' .. id)
end
