-- Hand out entries that nobody has, lane after lane, up to a count over all of them: one round trip, not one a lane.
-- KEYS lanes, in the order to look
-- ARGV worker, count
-- Replies as XREADGROUP does, one stream after another.

local worker, left = arg(), tonumber(arg())
local streams = {}

for _, lane in ipairs(KEYS) do
  if left <= 0 then break end
  local reply = redis.pcall('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', left, 'STREAMS', lane, '>')
  if reply and reply.err then
    if #streams == 0 then return reply end
    break -- what was handed out must be told; the error comes again
  end
  if reply and reply[1] then
    streams[#streams + 1] = reply[1]
    left = left - #reply[1][2]
  end
end
return streams
