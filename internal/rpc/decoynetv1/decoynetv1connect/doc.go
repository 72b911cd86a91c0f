// Package decoynetv1connect holds clients and handlers of the services of
// ../../decoynet.proto, as protoc makes them.
package decoynetv1connect
