-- Put an entry that is no request of ours out of the way: a dead letter always, a terminal error where nobody owns the
-- id, and the ack. Only while the entry is pending for this worker, so that burying twice leaves one letter.
-- KEYS dead, lane, job, result
-- ARGV worker, entry, id, lane, reason, dead_maxlen, result_ttl_s, entry fields, terminal fields (none: 0)

local dead, lane_key, job_key, result = key(), key(), key(), key()
local worker, entry, id, lane, reason = arg(), arg(), arg(), arg(), arg()
local dead_maxlen, result_ttl_s, fields, terminal = arg(), arg(), fields_arg(), fields_arg()

if not is_pending(lane_key, entry, worker) then return 0 end
drop_entry({[lane] = lane_key}, lane, entry)
for i = 1, #fields, 2 do fields[i] = 'field:' .. fields[i] end
dead_letter(dead, dead_maxlen, reason, {id = id, lane = lane, entry = entry}, unpack(fields))
if #terminal > 0 and redis.call('EXISTS', job_key) == 0 then
  local now = integer(now_ms())
  redis.call('HSET', job_key, 'version', VERSION, 'state', 'failed', 'fence', 0, 'worker', '', 'lane', lane,
    'entry', entry, 'published', 0, 'epoch', 0, 'accepted_ms', integer(accepted_at(entry)), 'finished_ms', now,
    'digest', '', 'result_ttl_s', result_ttl_s)
  redis.call('XADD', result, '0-1', unpack(terminal))
  redis.call('EXPIRE', job_key, result_ttl_s)
  redis.call('EXPIRE', result, result_ttl_s)
end
return 1
