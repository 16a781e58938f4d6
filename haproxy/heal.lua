-- Asks sasori where a node is if its route was wrong: the master in the map said "not mine" or could not be reached, or the
-- map does not hold the node. Used by haproxy.cfg, and by pools.cfg, where a master is a backend. A request whose route is
-- right never comes here.
--
-- The rule: a master that the map does not name gets a request only if sasori knows that the node has moved there, or if
-- the node's own master cannot be reached. With GATEWAY_REPLAY=all each master checks by itself whether it has the node.
--
-- In:  txn.node    the certname, already checked by the gateway
--      txn.tried   the masters that were tried for this request, separated by commas
-- Out: txn.first   the master that the map named; empty when it named none
--      txn.master  the master to try now; unset when there is none
--      txn.server  only for a pool whose servers are all drained: the server of it to try
--      txn.route   learned: sasori says that the node is there; redispatched: another master answers in place of its own
--      txn.final   set if this master's answer goes to the client whatever its status; no other master is tried after it

-- POOLS is set with pools.cfg. haproxy.cfg refuses to start with it.
local POOLS = {}
for name in (os.getenv("POOLS") or ""):gmatch("%S+") do POOLS[#POOLS + 1] = name end
local BACKEND = "puppet"
-- sasori is asked through the proxy "sasori" of haproxy.cfg: HAProxy resolves its name, checks its health, and fails at once
-- while it is down.
local SOCKET = os.getenv("HAPROXY_SOCKET")
local SASORI = "unix@" .. SOCKET .. ".sasori"
local FALLBACK = os.getenv("GATEWAY_FALLBACK") ~= "off"
local REPLAY_ALL = os.getenv("GATEWAY_REPLAY") == "all"

-- sasori may have to ask PuppetDB, and a client waits for the answer.
local DEADLINE_SECONDS = 2

-- With GATEWAY_REPLAY=all masters are tried one after the other, but for one request no more than this.
local MAX_TRIES = 4

-- How many requests of "ask_later" (below) may be under way. Further ones are not sent.
local MAX_LATER = 100

-- "up", "drained" (it serves the nodes that the map names, and gets no others), or nil.
local function server_state(server)
  local status = server:get_stats()["status"]
  -- "UP", "UP 1/2" (about to fall), "no check"; "DRAIN", "NOLB"; not "DOWN", "DOWN 1/2", "MAINT".
  if status == nil then return end
  if status:sub(1, 2) == "UP" or status == "no check" then return "up" end
  if status:sub(1, 5) == "DRAIN" or status:sub(1, 4) == "NOLB" then return "drained" end
end

-- The masters' names, and the state of one. Before HAProxy 2.9 a server that was added at run time is not in this table.
local servers = {
  names = function()
    local names = {}
    for name in pairs(core.backends[BACKEND].servers) do
      if name ~= "heal1" and name ~= "heal2" then names[#names + 1] = name end
    end
    return names
  end,
  state = function(name)
    local server = core.backends[BACKEND].servers[name]
    if server == nil then return "unknown" end
    return server_state(server)
  end,
}

-- The same for pools. A pool is up while it has a server that is up and has a weight. If all of its servers are drained, or have
-- weight 0, it still serves its own nodes, but HAProxy does not choose such a server by itself: the second value names one.
local pools = {
  names = function() return { table.unpack(POOLS) } end,
  state = function(name)
    local is_pool = false
    for _, pool in ipairs(POOLS) do is_pool = is_pool or pool == name end
    local backend = is_pool and core.backends[name]
    if not backend then return end
    local serving = {}
    for server_name, server in pairs(backend.servers) do
      local found = server_state(server)
      if found == "up" and server:get_stats()["weight"] ~= 0 then return "up" end
      if found then serving[#serving + 1] = server_name end
    end
    if #serving > 0 then return "drained", serving[math.random(#serving)] end
  end,
}

local masters = #POOLS > 0 and pools or servers

-- Returns a random master that is up and not in `tried`, and whether there is one more. It stops at the second, because each
-- lookup of a state makes HAProxy collect all statistics of a server.
local function another(tried)
  local names, found = {}, nil
  for _, name in ipairs(masters.names()) do
    if not tried[name] then names[#names + 1] = name end
  end
  while #names > 0 do
    local name = table.remove(names, math.random(#names))
    if masters.state(name) == "up" then
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

-- Returns "known" and the owner, if sasori knows something newer than the route; "unknown", if it does not; "silent", if sasori
-- does not answer, or cannot be certain.
local function ask_sasori(node, wrong)
  local socket = core.tcp()
  socket:settimeout(DEADLINE_SECONDS)
  if not socket:connect(SASORI) then return "silent" end
  local query = wrong and ("?not=" .. wrong) or ""
  socket:send("GET /api/v1/resolve/" .. node .. query .. " HTTP/1.0\r\nHost: localhost\r\n\r\n")
  local response = socket:receive("*a") or ""
  socket:close()
  local status, body = response:match("^HTTP/1%.[01] (%d+).-\r\n\r\n(.*)$")
  if status == "200" and body == wrong then return "unknown" end
  if status == "200" and body:match("^[%w_:.-]+$") then return "known", body end
  if status == "404" then return "unknown" end
  return "silent"
end

core.register_action("heal", { "http-req" }, function(txn)
  local list = txn:get_var("txn.tried") or ""
  local tried, count = to_set(list)
  local first = list:match("^[^,]+")
  txn:set_var("txn.first", first or "")
  local answer, owner = ask_sasori(txn:get_var("txn.node"), first)
  local function go(name, route, is_final)
    txn:set_var("txn.master", name)
    local _, server
    if masters == pools then _, server = pools.state(name) end
    if server then txn:set_var("txn.server", server) end
    txn:set_var("txn.route", route)
    if is_final then txn:set_var("txn.final", "yes") end
  end
  -- The node may be at a master that could not be reached at the first try, so a master is tried up to twice.
  local function may_try(name)
    return (tried[name] or 0) < 2 and masters.state(name) ~= nil
  end

  if owner and may_try(owner) then return go(owner, "learned", true) end

  local is_silent = answer == "silent"
  local name, has_more
  if FALLBACK and count < MAX_TRIES then name, has_more = another(tried) end
  local is_last = not is_silent or not has_more or count + 1 == MAX_TRIES
  -- The masters check ownership, so others may be tried: the one that succeeds has the node. If none does, the node's own
  -- master is asked last, and its answer counts. A node that is not in the map is never looked for in this way, because
  -- anybody can make up such names.
  if REPLAY_ALL and is_silent and first and name then
    return go(name, "redispatched", is_last and not may_try(first))
  end
  -- sasori knows nothing newer than the map. The map's master is asked once more, and the client gets its answer.
  if not owner and first and may_try(first) then return go(first, "mapped", true) end
  -- The node's own master cannot be reached.
  if (owner or first) and name then return go(name, "redispatched", is_last) end
end)

-- The client got the answer "not mine", because its request must not be executed twice. Afterwards this still asks sasori.
-- sasori pushes what it finds, so that the next request goes to the right master.
local later, count_later = {}, 0

core.register_action("ask_later", { "http-res" }, function(txn)
  local node, wrong = txn:get_var("txn.node"), txn:get_var("txn.master")
  if later[node] or count_later >= MAX_LATER then return end
  later[node] = true
  count_later = count_later + 1
  core.register_task(function()
    pcall(ask_sasori, node, wrong)
    later[node] = nil
    count_later = count_later - 1
  end)
end)

-- HAProxy makes its own sockets with ".new" at the end. They get their final names here, when the new process serves. If a
-- reload fails, the new process never gets this far, so the running process keeps its sockets. A process that inherits the
-- sockets of the one before it has nothing to rename. So leftovers of others are removed first.
local OWN = { SOCKET .. ".heal", SOCKET .. ".sasori" }
if masters == pools then OWN[#OWN + 1] = SOCKET .. ".pools" end
for _, file in ipairs(OWN) do os.remove((os.getenv("HAPROXY_CHROOT") or "") .. file .. ".new") end

core.register_task(function()
  for _, file in ipairs(OWN) do os.rename(file .. ".new", file) end
  -- Without them nothing heals, and nobody would notice before the first wrong route.
  for _, file in ipairs(OWN) do
    local socket = core.tcp()
    if not socket:connect("unix@" .. file) then
      core.log(core.alert, "no wrong route will heal: HAProxy cannot reach its own socket " .. file .. ". HAProxy's user must be "
        .. "allowed to create files in that folder. If HAProxy has a chroot, set HAPROXY_CHROOT to it")
    end
    socket:close()
  end
end)
