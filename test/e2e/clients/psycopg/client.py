"""psycopg 3 as a test client; see ../README.md."""

import hashlib
import json
import os
import sys
import threading
import time

import psycopg

action, host, port, user, database, sslmode = sys.argv[1:7]


def connect():
    return psycopg.connect(
        host=host,
        port=port,
        user=user,
        dbname=database,
        sslmode=sslmode,
        password=os.environ.get("PGPASSWORD"),
        connect_timeout=20,
        autocommit=True,
    )


def select():
    with connect() as connection:
        who, where = connection.execute("select current_user::text, inet_server_port()").fetchone()
        echo, total = connection.execute("select %s::text, %s::int + 1", ["it's \u00e4", 41]).fetchone()
        return {"user": who, "port": where, "echo": echo, "sum": total}


def cancel():
    with connect() as connection:
        started = time.monotonic()
        timer = threading.Timer(0.3, connection.cancel_safe)
        timer.start()
        sqlstate = None
        try:
            connection.execute("select pg_sleep(30)")
        except psycopg.Error as error:
            sqlstate = error.sqlstate
        elapsed = round((time.monotonic() - started) * 1000)
        timer.join()
        alive = connection.execute("select 1").fetchone() == (1,)
        return {"sqlstate": sqlstate, "ms": elapsed, "alive": alive}


def listen():
    channel = f"postern_{os.getpid()}"
    with connect() as ear, connect() as mouth:
        ear.execute(f"listen {channel}")
        mouth.execute("select pg_notify(%s, %s)", [channel, "hello"])
        for notification in ear.notifies(timeout=10, stop_after=1):
            return {"channel": notification.channel, "payload": notification.payload}
    return {"channel": None, "payload": None}


def copy():
    rows = 20000
    with connect() as connection, connection.cursor() as cursor:

        def read(query):
            with cursor.copy(query) as stream:
                return b"".join(bytes(chunk) for chunk in stream)

        out = read(f"copy (select n, md5(n::text) from generate_series(1, {rows}) n) to stdout")
        cursor.execute("create temporary table copied (n int, hash text)")
        with cursor.copy("copy copied from stdin") as stream:
            stream.write(out)
        back = read("copy (select * from copied order by n) to stdout")
        digests = [hashlib.sha256(data).hexdigest() for data in (out, back)]
        return {"rows": out.count(b"\n"), "out": digests[0], "back": digests[1]}


def error():
    try:
        connect().close()
    except psycopg.Error as failure:
        # libpq gives a failed connect's SQLSTATE only inside the text of a verbose message.
        return {"sqlstate": failure.sqlstate, "message": str(failure)}
    return {"sqlstate": None, "message": None}


actions = {"select": select, "cancel": cancel, "listen": listen, "copy": copy, "error": error}
print(json.dumps(actions[action]()))
