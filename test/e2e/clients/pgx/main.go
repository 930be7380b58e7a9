// Command pgx is pgx as a test client; see ../README.md.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

type answer map[string]any

func main() {
	if len(os.Args) != 7 {
		fail(errors.New("usage: ACTION HOST PORT USER DATABASE SSLMODE"))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	actions := map[string]func(context.Context) (answer, error){
		"select": doSelect, "cancel": doCancel, "listen": doListen, "copy": doCopy, "error": doError,
	}
	action, known := actions[os.Args[1]]
	if !known {
		fail(fmt.Errorf("no action %q", os.Args[1]))
	}
	result, err := action(ctx)
	if err != nil {
		fail(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// PGPASSWORD and PGSSLROOTCERT are read by pgx itself.
func connect(ctx context.Context) (*pgx.Conn, error) {
	return pgx.Connect(ctx, fmt.Sprintf("host=%s port=%s user=%s dbname=%s sslmode=%s connect_timeout=20",
		os.Args[2], os.Args[3], os.Args[4], os.Args[5], os.Args[6]))
}

func doSelect(ctx context.Context) (answer, error) {
	conn, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	var user, echo string
	var port *int
	var sum int
	if err := conn.QueryRow(ctx, "select current_user::text, inet_server_port()").Scan(&user, &port); err != nil {
		return nil, err
	}
	if err := conn.QueryRow(ctx, "select $1::text, $2::int + 1", "it's ä", 41).Scan(&echo, &sum); err != nil {
		return nil, err
	}
	return answer{"user": user, "port": port, "echo": echo, "sum": sum}, nil
}

func doCancel(ctx context.Context) (answer, error) {
	conn, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	started := time.Now()
	sent := make(chan error, 1)
	go func() {
		time.Sleep(300 * time.Millisecond)
		sent <- conn.PgConn().CancelRequest(ctx)
	}()
	_, failure := conn.Exec(ctx, "select pg_sleep(30)")
	elapsed := time.Since(started).Milliseconds()
	if err := <-sent; err != nil {
		return nil, err
	}
	var one int
	alive := conn.QueryRow(ctx, "select 1").Scan(&one) == nil
	return answer{"sqlstate": sqlstate(failure), "ms": elapsed, "alive": alive}, nil
}

func doListen(ctx context.Context) (answer, error) {
	ear, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	defer ear.Close(ctx)
	mouth, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	defer mouth.Close(ctx)
	channel := fmt.Sprintf("postern_%d", os.Getpid())
	if _, err := ear.Exec(ctx, "listen "+channel); err != nil {
		return nil, err
	}
	if _, err := mouth.Exec(ctx, "select pg_notify($1, $2)", channel, "hello"); err != nil {
		return nil, err
	}
	waiting, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	notification, err := ear.WaitForNotification(waiting)
	if err != nil {
		return nil, err
	}
	return answer{"channel": notification.Channel, "payload": notification.Payload}, nil
}

func doCopy(ctx context.Context) (answer, error) {
	conn, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	var out, back bytes.Buffer
	wire := conn.PgConn()
	tag, err := wire.CopyTo(ctx, &out, "copy (select n, md5(n::text) from generate_series(1, 20000) n) to stdout")
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, "create temporary table copied (n int, hash text)"); err != nil {
		return nil, err
	}
	if _, err := wire.CopyFrom(ctx, bytes.NewReader(out.Bytes()), "copy copied from stdin"); err != nil {
		return nil, err
	}
	if _, err := wire.CopyTo(ctx, &back, "copy (select * from copied order by n) to stdout"); err != nil {
		return nil, err
	}
	return answer{"rows": tag.RowsAffected(), "out": digest(out.Bytes()), "back": digest(back.Bytes())}, nil
}

func doError(ctx context.Context) (answer, error) {
	conn, err := connect(ctx)
	if err != nil {
		return answer{"sqlstate": sqlstate(err), "message": err.Error()}, nil
	}
	return answer{"sqlstate": nil, "message": nil}, conn.Close(ctx)
}

func sqlstate(err error) any {
	var failure *pgconn.PgError
	if errors.As(err, &failure) {
		return failure.Code
	}
	return nil
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
