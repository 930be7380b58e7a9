// Command go-mysql is go-sql-driver as a test client of MySQL; see ../README.md.
package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
)

type answer map[string]any

func main() {
	if len(os.Args) != 7 {
		fail(errors.New("usage: ACTION HOST PORT USER DATABASE SSLMODE"))
	}
	// An error is reported by the action that expects it, or not expected at all.
	_ = mysql.SetLogger(log.New(io.Discard, "", 0))
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	defer cancel()
	actions := map[string]func(context.Context) (answer, error){
		"select": doSelect, "kill-query": doKill, "multi-statements": doMulti,
		"big": doBig, "load-local": doLoad, "error": doError, "logins": doLogins,
	}
	action, known := actions[os.Args[1]]
	if !known {
		action = func(context.Context) (answer, error) { return answer{"unsupported": true}, nil }
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

func open(port string) (*sql.DB, error) {
	config := mysql.NewConfig()
	config.Net, config.Addr = "tcp", os.Args[2]+":"+port
	if strings.HasPrefix(os.Args[2], "/") {
		config.Net, config.Addr = "unix", os.Args[2]
	}
	config.User, config.DBName = os.Args[4], os.Args[5]
	config.Passwd = os.Getenv("MYSQL_PWD")
	config.Timeout = 20 * time.Second
	config.MaxAllowedPacket = 128 << 20
	config.MultiStatements = os.Args[1] == "multi-statements"
	config.AllowAllFiles = true
	// Only asked for where the test sends a password to the server itself, over TLS or to a port of this machine.
	config.AllowCleartextPasswords = os.Args[6] != "disable"
	switch os.Args[6] {
	case "prefer":
		config.TLSConfig = "preferred"
	case "require":
		config.TLSConfig = "skip-verify"
	case "verify-full":
		pem, err := os.ReadFile(os.Getenv("MYSQL_SSL_CA"))
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		config.TLS = &tls.Config{RootCAs: roots, ServerName: os.Args[2]}
	}
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

func connect(ctx context.Context) (*sql.Conn, error) {
	return connectTo(ctx, os.Args[3])
}

func connectTo(ctx context.Context, port string) (*sql.Conn, error) {
	db, err := open(port)
	if err != nil {
		return nil, err
	}
	return db.Conn(ctx)
}

func doSelect(ctx context.Context) (answer, error) {
	conn, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var user, echo string
	var number, sum, notes int
	if err := conn.QueryRowContext(ctx, "select current_user(), connection_id()").Scan(&user, &number); err != nil {
		return nil, err
	}
	prepared, err := conn.PrepareContext(ctx, "select ?, ? + 1")
	if err != nil {
		return nil, err
	}
	defer prepared.Close()
	if err := prepared.QueryRowContext(ctx, "it's ä", 41).Scan(&echo, &sum); err != nil {
		return nil, err
	}
	if err := conn.QueryRowContext(ctx, "select count(*) from notes").Scan(&notes); err != nil {
		return nil, err
	}
	return answer{
		"user": user, "connection": number, "greeted": nil, "echo": echo, "sum": sum, "notes": notes,
	}, nil
}

func doKill(ctx context.Context) (answer, error) {
	conn, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	other, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	defer other.Close()
	var number, one int
	if err := conn.QueryRowContext(ctx, "select connection_id()").Scan(&number); err != nil {
		return nil, err
	}
	started := time.Now()
	sent := make(chan error, 1)
	go func() {
		time.Sleep(300 * time.Millisecond)
		_, err := other.ExecContext(ctx, fmt.Sprintf("kill query %d", number))
		sent <- err
	}()
	failure := conn.QueryRowContext(ctx, "select count(*) from notes where sleep(1) = 0").Scan(&one)
	elapsed := time.Since(started).Milliseconds()
	if err := <-sent; err != nil {
		return nil, err
	}
	code, _, _ := reason(failure)
	alive := conn.QueryRowContext(ctx, "select 1").Scan(&one) == nil
	return answer{"code": code, "ms": elapsed, "alive": alive}, nil
}

func doMulti(ctx context.Context) (answer, error) {
	conn, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	rows, err := conn.QueryContext(ctx, "select 1; select 2")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	results := []int{}
	for more := true; more; more = rows.NextResultSet() {
		for rows.Next() {
			var value int
			if err := rows.Scan(&value); err != nil {
				return nil, err
			}
			results = append(results, value)
		}
	}
	return answer{"results": results}, rows.Err()
}

func doBig(ctx context.Context) (answer, error) {
	var text strings.Builder
	for n := range 8 * 1024 * 1024 {
		fmt.Fprintf(&text, "%07d,", n)
	}
	conn, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, "set @text = '"+text.String()+"'"); err != nil {
		return nil, err
	}
	var server, back string
	if err := conn.QueryRowContext(ctx, "select sha2(@text, 256), @text").Scan(&server, &back); err != nil {
		return nil, err
	}
	return answer{"sent": digest(text.String()), "server": server, "back": digest(back)}, nil
}

func doLoad(ctx context.Context) (answer, error) {
	conn, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, "create temporary table loaded (n int, text varchar(200))"); err != nil {
		return nil, err
	}
	load := fmt.Sprintf("load data local infile '%s' into table loaded", os.Getenv("MYSQL_LOCAL_FILE"))
	if _, err := conn.ExecContext(ctx, load); err != nil {
		code, _, message := reason(err)
		return answer{"rows": 0, "code": code, "message": message}, nil
	}
	var rows int
	if err := conn.QueryRowContext(ctx, "select count(*) from loaded").Scan(&rows); err != nil {
		return nil, err
	}
	return answer{"rows": rows, "code": nil, "message": nil}, nil
}

func doError(ctx context.Context) (answer, error) {
	result := tryLogin(ctx, os.Args[3])
	delete(result, "user")
	return result, nil
}

func doLogins(ctx context.Context) (answer, error) {
	results := []answer{}
	for _, port := range strings.Split(os.Args[3], ",") {
		results = append(results, tryLogin(ctx, port))
	}
	return answer{"results": results}, nil
}

func tryLogin(ctx context.Context, port string) answer {
	var user any
	conn, err := connectTo(ctx, port)
	if err == nil {
		defer conn.Close()
		var name string
		err = conn.QueryRowContext(ctx, "select current_user()").Scan(&name)
		user = name
	}
	if err != nil {
		user = nil
	}
	code, sqlstate, message := reason(err)
	return answer{"user": user, "code": code, "sqlstate": sqlstate, "message": message}
}

func reason(err error) (code, sqlstate, message any) {
	if err == nil {
		return nil, nil, nil
	}
	var failure *mysql.MySQLError
	if errors.As(err, &failure) {
		return failure.Number, strings.TrimRight(string(failure.SQLState[:]), "\x00"), failure.Message
	}
	return nil, nil, err.Error()
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}
