// Package openapi holds the description of the controller's API in OpenAPI 3.1, made
// from decoynet.proto with the comments in it.
package openapi

import _ "embed"

//go:generate sh -c "protoc --include_source_info --descriptor_set_out=decoynet.binpb -I ../../internal/rpc decoynet.proto && go run ./generate decoynet.binpb openapi.json && rm decoynet.binpb"

// Document is the description, as JSON.
//
//go:embed openapi.json
var Document []byte
