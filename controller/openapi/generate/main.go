// Command generate writes openapi.json from a descriptor set that protoc made, with
// source information:
//
//	generate decoynet.binpb openapi.json
package main

import (
	"fmt"
	"os"

	"decoynet/controller/openapi"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("want two arguments, a descriptor set and the file to write, not %d", len(args))
	}
	b, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(b, &set); err != nil {
		return fmt.Errorf("read %s: %w", args[0], err)
	}
	if len(set.GetFile()) != 1 {
		return fmt.Errorf("%s describes %d files, want one", args[0], len(set.GetFile()))
	}
	out, err := openapi.Generate(set.GetFile()[0])
	if err != nil {
		return err
	}
	return os.WriteFile(args[1], out, 0o644)
}
