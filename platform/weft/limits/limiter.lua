-- The limiter's counts in Redis; `weft.limits.limiter` says what they mean.
--
-- KEYS    for each rule: its requests' amounts by step, with their "total" (hash), their steps with
--         the oldest first (list), the same two for its tokens, and who runs, by the end of the
--         lease (sorted set); then for each job the step that it was reserved in (string), which is
--         there while it is open: so no operation takes effect twice
-- ARGV    operation, time in ms (empty: this server's), lease in ms, number of rules, number of
--         jobs, limits of each rule (requests, tokens, running; empty: none), then for each job its
--         id, requests and tokens: to take in "reserve", to give back in "settle"
local STEP_MS, STEPS = 100, 600
local RULE_KEYS = 5
-- how long a place is likely taken: nobody knows when a request ends
local RUNNING_RETRY_MS = 1000

local operation, lease_ms = ARGV[1], tonumber(ARGV[3])
local num_rules, num_jobs = tonumber(ARGV[4]), tonumber(ARGV[5])
local now_ms = tonumber(ARGV[2])
if not now_ms then
  local time = redis.call('TIME')
  now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
end
local now_step = math.floor(now_ms / STEP_MS)
local kept_ms = (STEPS + 2) * STEP_MS

local function window(first_key)
  return {amounts = KEYS[first_key], steps = KEYS[first_key + 1]}
end

local rules, jobs = {}, {}
for i = 1, num_rules do
  local key, arg = (i - 1) * RULE_KEYS, 5 + (i - 1) * 3
  rules[i] = {
    requests = window(key + 1), max_requests = tonumber(ARGV[arg + 1]),
    tokens = window(key + 3), max_tokens = tonumber(ARGV[arg + 2]),
    running = KEYS[key + 5], max_running = tonumber(ARGV[arg + 3]),
  }
end
for i = 1, num_jobs do
  local arg = 5 + num_rules * 3 + (i - 1) * 3
  jobs[i] = {
    key = KEYS[num_rules * RULE_KEYS + i], id = ARGV[arg + 1],
    requests = tonumber(ARGV[arg + 2]), tokens = tonumber(ARGV[arg + 3]),
  }
end

local function amount(win, step)
  return tonumber(redis.call('HGET', win.amounts, step) or 0)
end

local function end_ms(step)
  return (step + STEPS + 1) * STEP_MS
end

local function step_at(win, index)
  return tonumber(redis.call('LINDEX', win.steps, index) or nil)
end

local function expire(win)
  local step = step_at(win, 0)
  while step and now_step - step > STEPS do
    redis.call('HINCRBY', win.amounts, 'total', 0 - amount(win, step))
    redis.call('HDEL', win.amounts, step)
    redis.call('LPOP', win.steps)
    step = step_at(win, 0)
  end
end

local function add(win, step, added)
  if step_at(win, -1) ~= step then
    redis.call('RPUSH', win.steps, step)
  end
  redis.call('HINCRBY', win.amounts, step, added)
  redis.call('HINCRBY', win.amounts, 'total', added)
  -- a clock that was set back may have left a newest step that is ahead
  local ttl_ms = kept_ms + math.max(step - now_step, 0) * STEP_MS
  redis.call('PEXPIRE', win.amounts, ttl_ms)
  redis.call('PEXPIRE', win.steps, ttl_ms)
end

-- `0 - x`, since `-x` of nothing is "-0", which Redis does not take for a number
local function refund(win, step, given_back)
  if redis.call('HEXISTS', win.amounts, step) == 1 then
    redis.call('HINCRBY', win.amounts, step, 0 - given_back)
    redis.call('HINCRBY', win.amounts, 'total', 0 - given_back)
  end
end

local function free_in_ms(win, wanted)
  local index, step = 0, step_at(win, 0)
  while true do
    wanted = wanted - amount(win, step)
    if wanted <= 0 then
      return end_ms(step) - now_ms
    end
    index = index + 1
    step = step_at(win, index)
  end
end

local function reset_ms(win)
  local index, step = -1, step_at(win, -1)
  while step do
    if amount(win, step) > 0 then
      return end_ms(step) - now_ms
    end
    index = index - 1
    step = step_at(win, index)
  end
  return 0
end

-- `answer`, and for each rule what is taken of its requests and tokens and when all is free again
local function with_levels(answer)
  for _, rule in ipairs(rules) do
    for _, win in ipairs({rule.requests, rule.tokens}) do
      table.insert(answer, amount(win, 'total'))
      table.insert(answer, reset_ms(win))
    end
  end
  return answer
end

local function lease(rule, job)
  redis.call('ZADD', rule.running, now_ms + lease_ms, job.id)
  redis.call('PEXPIRE', rule.running, lease_ms + STEP_MS)
end

-- the limit that must be waited for longest, nothing where all have room
local function worst(num_requests, num_tokens)
  local found
  local function refuse(index, dimension, retry_ms)
    if not found or (found[3] and (not retry_ms or retry_ms > found[3])) then
      found = {index, dimension, retry_ms}
    end
  end
  local function check(index, dimension, win, limit, wanted)
    -- in this order it is exact up to 2^53
    local excess = limit and wanted - (limit - amount(win, 'total'))
    if excess and excess > 0 then
      refuse(index, dimension, wanted <= limit and free_in_ms(win, excess))
    end
  end
  for i, rule in ipairs(rules) do
    check(i, 'requests', rule.requests, rule.max_requests, num_requests)
    check(i, 'tokens', rule.tokens, rule.max_tokens, num_tokens)
    if rule.max_running and redis.call('ZCARD', rule.running) + num_jobs > rule.max_running then
      refuse(i, 'running', num_jobs <= rule.max_running and RUNNING_RETRY_MS)
    end
  end
  return found
end

local operations = {}

function operations.peek()
  return with_levels({1, 0})
end

function operations.reserve()
  local reserved_in = redis.call('GET', jobs[1].key)
  if reserved_in then
    return with_levels({1, tonumber(reserved_in)})  -- the answer to the first attempt was lost
  end
  local num_requests, num_tokens = 0, 0
  for _, job in ipairs(jobs) do
    num_requests, num_tokens = num_requests + job.requests, num_tokens + job.tokens
  end
  local refused = worst(num_requests, num_tokens)
  if refused then
    return with_levels({0, 0, refused[1], refused[2], refused[3]})
  end
  local step = now_step  -- never before a step that has begun
  for _, rule in ipairs(rules) do
    step = math.max(step, step_at(rule.requests, -1) or 0, step_at(rule.tokens, -1) or 0)
  end
  for _, rule in ipairs(rules) do
    if rule.max_requests then add(rule.requests, step, num_requests) end
    if rule.max_tokens then add(rule.tokens, step, num_tokens) end
    for _, job in ipairs(rule.max_running and jobs or {}) do
      lease(rule, job)
    end
  end
  for _, job in ipairs(jobs) do
    redis.call('SET', job.key, step, 'PX', kept_ms + lease_ms)
  end
  return with_levels({1, step})
end

function operations.settle()
  local job = jobs[1]
  local step = redis.call('GET', job.key)
  for _, rule in ipairs(step and rules or {}) do
    if rule.max_requests then refund(rule.requests, step, job.requests) end
    if rule.max_tokens then refund(rule.tokens, step, job.tokens) end
    redis.call('ZREM', rule.running, job.id)
  end
  redis.call('DEL', job.key)
  return {1, 0}
end

-- also brings back what a Redis that was started anew has lost, so nothing asks if it is there
function operations.renew()
  local job = jobs[1]
  for _, rule in ipairs(rules) do
    if rule.max_running then lease(rule, job) end
  end
  redis.call('SET', job.key, now_step, 'PX', kept_ms + lease_ms, 'NX')
  redis.call('PEXPIRE', job.key, kept_ms + lease_ms)
  return {1, 0}
end

for _, rule in ipairs(rules) do
  expire(rule.requests)
  expire(rule.tokens)
  redis.call('ZREMRANGEBYSCORE', rule.running, '-inf', now_ms)
end
return operations[operation]()
