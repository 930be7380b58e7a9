//go:build tools

// Package tools pins the servers that the Kubernetes tests build: a blank import keeps them in go.mod.
package tools

import (
	_ "go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
)
