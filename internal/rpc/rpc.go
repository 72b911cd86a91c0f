// Package rpc is what nodes and controller say to each other: the messages and
// services of decoynet.proto, their translation from and to the domain, and the
// node's side of the conversation.
package rpc

// The two plugins of protoc are built from the modules that go.mod names.
//go:generate go build -o ../../.cache/tools/ google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go
//go:generate protoc --plugin=protoc-gen-go=../../.cache/tools/protoc-gen-go --plugin=protoc-gen-connect-go=../../.cache/tools/protoc-gen-connect-go --go_out=decoynetv1 --go_opt=module=decoynet/internal/rpc/decoynetv1 --connect-go_out=decoynetv1 --connect-go_opt=module=decoynet/internal/rpc/decoynetv1 decoynet.proto
