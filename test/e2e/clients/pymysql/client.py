"""PyMySQL as a test client of MySQL; see ../README.md."""

import hashlib
import json
import os
import ssl
import sys
import threading
import time

import pymysql
from pymysql.constants import CLIENT

action, host, port, user, database, sslmode = sys.argv[1:7]
password = os.environ.get("MYSQL_PWD", "")


def tls():
    if sslmode == "disable":
        return {"ssl_disabled": True}
    context = ssl.create_default_context(cafile=os.environ.get("MYSQL_SSL_CA"))
    if sslmode != "verify-full":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return {"ssl": context}


def connect(at=port, **options):
    where = {"unix_socket": host} if host.startswith("/") else {"host": host, "port": int(at)}
    options = {**where, **tls(), "user": user, "password": password, "database": database, **options}
    return pymysql.connect(connect_timeout=20, charset="utf8mb4", autocommit=True, **options)


def one(connection, query, values=None):
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        return cursor.fetchone()


def select():
    with connect() as connection:
        who, number = one(connection, "select current_user(), connection_id()")
        echo, total = one(connection, "select %s, %s + 1", ["it's \u00e4", 41])
        (notes,) = one(connection, "select count(*) from notes")
        return {
            "user": who,
            "connection": number,
            "greeted": connection.thread_id(),
            "echo": echo,
            "sum": int(total),
            "notes": notes,
        }


def kill_query():
    with connect() as connection, connect() as other:
        started = time.monotonic()
        timer = threading.Timer(0.3, one, (other, f"kill query {connection.thread_id()}"))
        timer.start()
        code = None
        try:
            one(connection, "select count(*) from notes where sleep(1) = 0")
        except pymysql.MySQLError as failure:
            code = failure.args[0]
        elapsed = round((time.monotonic() - started) * 1000)
        timer.join()
        return {"code": code, "ms": elapsed, "alive": one(connection, "select 1") == (1,)}


def multi_statements():
    with connect(client_flag=CLIENT.MULTI_STATEMENTS) as connection, connection.cursor() as cursor:
        cursor.execute("select 1; select 2")
        results = [cursor.fetchone()[0]]
        while cursor.nextset():
            results.append(cursor.fetchone()[0])
        return {"results": results}


def big():
    text = "".join(f"{n:07d}," for n in range(8 * 1024 * 1024))
    sent = hashlib.sha256(text.encode()).hexdigest()
    with connect() as connection:
        one(connection, f"set @text = '{text}'")
        (server,) = one(connection, "select sha2(@text, 256)")
        (back,) = one(connection, "select @text")
        back = back if isinstance(back, bytes) else back.encode()
        return {"sent": sent, "server": server, "back": hashlib.sha256(back).hexdigest()}


def load_local():
    with connect(local_infile=True) as connection:
        one(connection, "create temporary table loaded (n int, text varchar(200))")
        path = os.environ["MYSQL_LOCAL_FILE"]
        try:
            one(connection, f"load data local infile '{path}' into table loaded")
        except pymysql.MySQLError as failure:
            return {"rows": 0, "code": failure.args[0], "message": str(failure.args[1])}
        return {"rows": one(connection, "select count(*) from loaded")[0], "code": None, "message": None}


def try_login(at):
    try:
        with connect(at) as connection:
            (user,) = one(connection, "select current_user()")
    except pymysql.MySQLError as failure:
        # PyMySQL reads the SQLSTATE and forgets it.
        return {"user": None, "code": failure.args[0], "sqlstate": None, "message": str(failure.args[1])}
    return {"user": user, "code": None, "sqlstate": None, "message": None}


def error():
    result = try_login(port)
    del result["user"]
    return result


def logins():
    return {"results": [try_login(each) for each in port.split(",")]}


actions = {
    "select": select,
    "kill-query": kill_query,
    "multi-statements": multi_statements,
    "big": big,
    "load-local": load_local,
    "error": error,
    "logins": logins,
}
print(json.dumps(actions[action]() if action in actions else {"unsupported": True}))
