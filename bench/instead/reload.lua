-- Loaded into HAProxy with the map's file as its argument: the command `nodes reload` on the stats socket has the file read
-- again, and what differs from the last reading is set. A task does that, which HAProxy interrupts for requests.
local file = ...
local wanted = false

local function read()
  local nodes = {}
  for line in io.lines(file) do
    local node, master = line:match("^(%S+) (%S+)$")
    if node then nodes[node] = master end
  end
  return nodes
end

core.register_cli({ "nodes", "reload" }, "nodes reload: reads the map's file again", function() wanted = true end)

core.register_task(function()
  local known = read()
  while true do
    if wanted then
      wanted = false
      local nodes = read()
      for node, master in pairs(nodes) do
        if known[node] ~= master then core.set_map(file, node, master) end
      end
      for node in pairs(known) do
        if not nodes[node] then core.del_map(file, node) end
      end
      known = nodes
    end
    core.msleep(5)
  end
end)
