-- For wrk: asks for one node after another by the header X-Node-Name, and prints what it counted as one line of JSON.
-- Arguments: how many nodes there are, the format of their names ("node%d.example.com"), the number of the first (0).

function init(args)
  local count, name, first = tonumber(args[1]), args[2] or "node%d.example.com", tonumber(args[3] or 0)
  requests, at = {}, 0
  -- Written once, before the clock starts: what wrk spends per request is the gateway's loss.
  for index = 0, count - 1 do
    -- A step that shares no factor with the count: neighbours in time are none in the map.
    local node = string.format(name, first + (index * 7919) % count)
    requests[index] = wrk.format("GET", "/puppet/v3/node/" .. node, { ["X-Node-Name"] = node, ["Host"] = "gateway" })
  end
  total = count
end

function request()
  at = (at + 1) % total
  return requests[at]
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    '{"requests":%d,"microseconds":%d,"p50":%d,"p99":%d,"failed":%d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout
  ))
end
