-- Wakes the one who blocks on this stream beside others, so that it names one more the next time.
-- KEYS bell
-- ARGV ttl_ms

local bell, ttl_ms = key(), arg()

redis.call('XADD', bell, 'MAXLEN', 1, '*', 'ring', 1)
redis.call('PEXPIRE', bell, ttl_ms)
return 1
