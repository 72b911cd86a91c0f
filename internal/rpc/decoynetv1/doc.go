// Package decoynetv1 holds the messages of ../decoynet.proto, as protoc makes them.
package decoynetv1
