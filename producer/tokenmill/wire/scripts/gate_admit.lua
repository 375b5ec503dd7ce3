-- May an API key send one more request now? Two buckets that refill by the minute, and a day's (UTC) tokens. What is
-- refused is charged nothing. A limit of 0 is none.
-- KEYS use
-- ARGV requests_per_minute, tokens_per_minute, tokens_per_day, tokens, ttl_s

local use = key()
local rpm, tpm, tpd, tokens, ttl_s = tonumber(arg()), tonumber(arg()), tonumber(arg()), tonumber(arg()), arg()

local now = now_ms()
local today = integer(math.floor(now / 86400000))
local known = redis.call('HMGET', use, 'at', 'requests', 'tokens', 'day', 'used')
local passed = math.max(0, now - (tonumber(known[1] or '') or now))

local function left(limit, before)
  return math.min(limit, (tonumber(before or '') or limit) + passed * limit / 60000)
end

-- Until the bucket holds as much as is wanted.
local function wait_ms(limit, has, wanted)
  if limit == 0 or has >= wanted then return 0 end
  return math.ceil((wanted - has) * 60000 / limit)
end

local requests_left, tokens_left = left(rpm, known[2]), left(tpm, known[3])
local used = known[4] == today and tonumber(known[5] or '0') or 0
local to_midnight = 86400000 - now % 86400000

local verdict, retry = 'ok', 0
if tpd > 0 and used + tokens > tpd then
  verdict, retry = tokens > tpd and 'never_day' or 'day', to_midnight
elseif tpm > 0 and tokens > tpm then
  verdict = 'never_minute'
elseif wait_ms(rpm, requests_left, 1) > 0 then
  verdict, retry = 'requests', wait_ms(rpm, requests_left, 1)
elseif wait_ms(tpm, tokens_left, tokens) > 0 then
  verdict, retry = 'tokens', wait_ms(tpm, tokens_left, tokens)
else
  requests_left, tokens_left, used = math.max(0, requests_left - 1), math.max(0, tokens_left - tokens), used + tokens
end
redis.call('HSET', use, 'at', integer(now), 'requests', string.format('%.4f', requests_left),
  'tokens', string.format('%.4f', tokens_left), 'day', today, 'used', integer(used))
redis.call('EXPIRE', use, ttl_s)
return {verdict, integer(math.floor(requests_left)), integer(math.floor(tokens_left)),
  wait_ms(rpm, requests_left, rpm), wait_ms(tpm, tokens_left, tpm), integer(retry), integer(used), today}
