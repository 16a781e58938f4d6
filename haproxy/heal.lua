-- Asks sasori where a node is, when its route turned out wrong: the master that the map named said "not mine",
-- could not be reached, or there is no route. Used by haproxy.cfg; a request whose route is right never comes here.
--
-- In:  txn.node    the certname, already checked by the gateway
--      txn.tried   the servers that were tried for this request, separated by commas
-- Out: txn.first   the server that the map named; empty when it named none
--      txn.master  the server to try now; unset when there is none
--      txn.route   learned: sasori says that the node is there; redispatched: another master stands in
--      txn.final   set when an answer of this server is to be believed, whatever its status

local BACKEND = "puppet"
-- The gateway's own way to sasori: HAProxy resolves the name, checks its health, and fails at once when it is down.
local SASORI = "abns@" .. os.getenv("HAPROXY_SOCKET") .. ".sasori"
local FALLBACK = os.getenv("GATEWAY_FALLBACK") ~= "off"

-- sasori may have to ask PuppetDB; a client is waiting meanwhile.
local DEADLINE_SECONDS = 2

-- Without sasori the masters are tried one after the other, but never more than this.
local MAX_TRIES = 4

local function is_up(server)
  local status = server:get_stats()["status"]
  -- "UP", "UP 1/2" (about to fall), "no check"; not "DOWN", "DOWN 1/2", "MAINT", "DRAIN", "NOLB".
  return status ~= nil and (status:sub(1, 2) == "UP" or status == "no check")
end

-- One of the masters that are up and not in `tried`, by chance, and whether there is another. heal1 and heal2 would only
-- lead back here. No server is asked how it is (a page of statistics) beyond the two that answer this.
local function another(tried)
  local names, found = {}, nil
  for name in pairs(core.backends[BACKEND].servers) do
    if not name:match("^heal%d$") and not tried[name] then names[#names + 1] = name end
  end
  while #names > 0 do
    local name = table.remove(names, math.random(#names))
    if is_up(core.backends[BACKEND].servers[name]) then
      if found then return found, true end
      found = name
    end
  end
  return found, false
end

local function to_set(list)
  local names, count = {}, 0
  for name in list:gmatch("[^,]+") do
    names[name] = (names[name] or 0) + 1
    count = count + 1
  end
  return names, count
end

-- "known" and the owner, "unknown", or "silent" when sasori gives no answer, or none that is certain.
local function ask_sasori(node, wrong)
  local socket = core.tcp()
  socket:settimeout(DEADLINE_SECONDS)
  if not socket:connect(SASORI) then return "silent" end
  local query = wrong and ("?not=" .. wrong) or ""
  socket:send("GET /api/v1/resolve/" .. node .. query .. " HTTP/1.0\r\nHost: localhost\r\n\r\n")
  local response = socket:receive("*a") or ""
  socket:close()
  local status, body = response:match("^HTTP/1%.[01] (%d+).-\r\n\r\n(.*)$")
  if status == "200" and body:match("^[%w_:.-]+$") then return "known", body end
  if status == "404" then return "unknown" end
  return "silent"
end

-- Another master for a node whose own is down, or, while sasori is silent, one that may have it.
local function stand_in(txn, tried, is_last)
  if not FALLBACK then return end
  local name, has_more = another(tried)
  if not name then return end
  txn:set_var("txn.master", name)
  txn:set_var("txn.route", "redispatched")
  if is_last or not has_more then txn:set_var("txn.final", "yes") end
end

core.register_action("heal", { "http-req" }, function(txn)
  local list = txn:get_var("txn.tried") or ""
  local tried, count = to_set(list)
  local first = list:match("^[^,]+")
  txn:set_var("txn.first", first or "")
  local answer, owner = ask_sasori(txn:get_var("txn.node"), first)
  -- Nobody knows better than the map: its master is asked once more, and what it says then is the answer.
  if answer == "unknown" then owner = first end

  -- Before HAProxy 2.9 a server that was added at run time is not in this table, so one that is not may be up.
  local server = owner and core.backends[BACKEND].servers[owner]
  if owner and (not server or is_up(server)) and (tried[owner] or 0) < 2 then
    txn:set_var("txn.master", owner)
    txn:set_var("txn.final", "yes")
    txn:set_var("txn.route", owner == first and "mapped" or "learned")
  -- A node that is not in the map is never looked for among the masters: anybody can make up such names.
  elseif count < MAX_TRIES and (owner or (first and answer == "silent")) then
    stand_in(txn, tried, answer ~= "silent" or count + 1 == MAX_TRIES)
  end
end)
