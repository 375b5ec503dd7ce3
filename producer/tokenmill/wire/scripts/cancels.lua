-- Read the cancel requests for one worker, between two renewals.
-- KEYS workers, cancels
-- ARGV worker

local workers, cancels = key(), key()
if not redis.call('ZSCORE', workers, arg()) then return {1, {}} end
return {0, redis.call('SMEMBERS', cancels)}
