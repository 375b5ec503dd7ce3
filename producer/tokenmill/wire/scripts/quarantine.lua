-- Hand out one entry of the quarantine lane, and none while another is at work: who crashes then, crashes alone. What
-- is pending for the caller already is handed out again, so that a lost reply costs nothing.
-- KEYS workers, quarantine lane, not_before
-- ARGV worker, horizon_ms
-- Replies with the entry, as XREADGROUP does, and how many are left here or come due within the horizon.

local workers, lane, not_before = key(), key(), key()
local worker, horizon_ms = arg(), tonumber(arg())

if not redis.call('ZSCORE', workers, worker) then return redis.error_reply('FENCED ' .. worker .. ' has no lease') end

local function next_entry()
  local pending = redis.call('XPENDING', lane, GROUP, '-', '+', 1)
  if #pending > 0 and pending[1][2] ~= worker then return {} end
  return redis.call('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', 1, 'STREAMS', lane, #pending > 0 and '0' or '>') or {}
end

redis.pcall('XGROUP', 'CREATE', lane, GROUP, '0', 'MKSTREAM')
local entry = next_entry()
return {entry, redis.call('XLEN', lane) + redis.call('ZCOUNT', not_before, '-inf', integer(now_ms() + horizon_ms))}
