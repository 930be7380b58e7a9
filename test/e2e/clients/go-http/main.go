// Command go-http is net/http as a test client; see ../README.md.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	answer, err := ask(os.Args[1], os.Args[2])
	if err != nil {
		answer = map[string]any{"status": 0, "error": err.Error()}
	}
	_ = json.NewEncoder(os.Stdout).Encode(answer)
}

func ask(action, url string) (map[string]any, error) {
	method, body := http.MethodGet, io.Reader(nil)
	switch action {
	case "post":
		method, body = http.MethodPost, strings.NewReader(`{"n":1}`)
	case "upload":
		// A reader of unknown length: chunked.
		method, body = http.MethodPost, struct{ io.Reader }{bytes.NewReader(bytes.Repeat([]byte("z"), 16384*64))}
	}
	request, err := http.NewRequest(method, url, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	client := http.Client{Timeout: 30 * time.Second}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(content)
	text := ""
	if len(content) <= 65536 {
		text = string(content)
	}
	return map[string]any{
		"status": response.StatusCode, "type": response.Header.Get("Content-Type"), "length": len(content),
		"sha256": hex.EncodeToString(sum[:]), "text": text,
	}, nil
}
