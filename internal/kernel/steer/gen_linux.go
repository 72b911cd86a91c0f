package steer

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package steer -tags linux -target bpfel -no-global-types program steer.c -- -Wall -Werror
