package disguise

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package disguise -tags linux -target bpfel -no-global-types program disguise.c -- -Wall -Werror
