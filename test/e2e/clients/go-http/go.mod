module postern/test/e2e/clients/go-http

go 1.25.0
