-- One row by its primary key for each event, as sysbench's oltp_point_select does it: over a prepared statement, or,
-- with --reconnect, as a query over a connection of its own.

sysbench.cmdline.options = {
  reconnect = { "A new connection for every query", false },
}

local rows = 100

function thread_init()
  drv = sysbench.sql.driver()
  if not sysbench.opt.reconnect then
    con = drv:connect()
    statement = con:prepare("SELECT body FROM notes WHERE id = ?")
    id = statement:bind_create(sysbench.sql.type.INT)
    statement:bind_param(id)
  end
end

function event()
  if sysbench.opt.reconnect then
    local own = drv:connect()
    own:query("SELECT body FROM notes WHERE id = " .. sysbench.rand.uniform(1, rows))
    own:disconnect()
  else
    id:set(sysbench.rand.uniform(1, rows))
    statement:execute()
  end
end

function thread_done()
  if con then
    statement:close()
    con:disconnect()
  end
end
