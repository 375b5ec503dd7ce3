-- Accept new requests: each gets its job hash and one lane entry, or is told why not. Nothing of a refused one is kept.
-- KEYS deadlines, not_before, lanes x5, then per request: job, result, group, group_done
-- ARGV max_depth, retry_after_ms, n, then per request: id, group, lane, not_before_ms (from now, or ''), submission

local deadlines, not_before, lanes = key(), key(), lane_keys()
local max_depth, retry_after_ms, count = tonumber(arg()), arg(), tonumber(arg())
local now = now_ms()
local replies = {}
local depths = {}

local function depth_of(lane)
  if not depths[lane] then depths[lane] = redis.call('XLEN', lanes[lane]) end
  return depths[lane]
end

local function accept(keys, id, new, lane, delay_ms)
  if delay_ms == '' then
    create_job(keys, id, new, 'queued', lane, enqueue(lanes[lane], id, new.group), now, deadlines)
    depths[lane] = depths[lane] + 1
  else
    create_job(keys, id, new, 'scheduled', lane, '', now, deadlines)
    redis.call('ZADD', not_before, integer(now + tonumber(delay_ms)), id)
  end
end

for i = 1, count do
  local keys, id, group, lane, delay_ms = job_keys(), arg(), arg(), arg(), arg()
  local new = submission_args()
  new.group = group
  local known = redis.call('HMGET', keys.job, 'digest', 'state')
  if known[2] then
    replies[i] = {known[1] == new.digest and 'dup' or 'conflict', known[2], ''}
  elseif depth_of(lane) >= max_depth then
    replies[i] = {'busy', '', retry_after_ms}
  else
    accept(keys, id, new, lane, delay_ms)
    replies[i] = {'accepted', delay_ms == '' and 'queued' or 'scheduled', ''}
  end
end
return replies
