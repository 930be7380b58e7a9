// The relay that a Go program has for nothing: io.Copy each way, which splices in the kernel where neither end has TLS.
// go-relay LISTEN UPSTREAM [CA-FILE SERVER-NAME]: with a CA it asks PostgreSQL for TLS first, and verifies it.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"os"
)

func main() {
	var secure *tls.Config
	if len(os.Args) > 4 {
		pem, err := os.ReadFile(os.Args[3])
		fatal(err)
		secure = &tls.Config{RootCAs: x509.NewCertPool(), ServerName: os.Args[4]}
		secure.RootCAs.AppendCertsFromPEM(pem)
	}
	listener, err := net.Listen("tcp", os.Args[1])
	fatal(err)
	for {
		client, err := listener.Accept()
		fatal(err)
		go relay(client, os.Args[2], secure)
	}
}

func relay(client net.Conn, address string, secure *tls.Config) {
	defer client.Close()
	upstream, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer func() { upstream.Close() }()
	if secure != nil {
		answer := make([]byte, 1)
		upstream.Write([]byte{0, 0, 0, 8, 4, 210, 22, 47}) // SSLRequest
		if _, err := io.ReadFull(upstream, answer); err != nil || answer[0] != 'S' {
			return
		}
		upstream = tls.Client(upstream, secure)
	}
	done := make(chan struct{})
	go func() { copyAll(upstream, client); close(done) }()
	copyAll(client, upstream)
	<-done
}

// Passes the end of one direction on; the other may go on after it.
func copyAll(to, from net.Conn) {
	io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
}

func fatal(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
