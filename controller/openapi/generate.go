package openapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"google.golang.org/protobuf/types/descriptorpb"
)

// object is a JSON object; encoding/json sorts its keys, so equal input gives equal
// output.
type object = map[string]any

// Generate writes the OpenAPI document of the services in the file, as Connect speaks
// them in JSON (https://connectrpc.com/docs/protocol, and the JSON mapping of
// https://protobuf.dev/programming-guides/json). Comments are taken where the
// descriptor has them (protoc --include_source_info). It returns an error for what it
// has no words for.
func Generate(file *descriptorpb.FileDescriptorProto) ([]byte, error) {
	g := &generator{file: file, comments: make(map[string]string)}
	for _, l := range file.GetSourceCodeInfo().GetLocation() {
		text := strings.TrimSpace(l.GetLeadingComments())
		if text == "" {
			text = strings.TrimSpace(l.GetTrailingComments())
		}
		if text != "" {
			g.comments[fmt.Sprint(l.GetPath())] = plain(text)
		}
	}
	paths, tags := object{}, []object{}
	for i, s := range file.GetService() {
		tags = append(tags, object{"name": s.GetName(), "description": g.comment(6, i)})
		for j, m := range s.GetMethod() {
			paths["/"+file.GetPackage()+"."+s.GetName()+"/"+m.GetName()] = object{"post": g.operation(s, m, g.comment(6, i, 2, j))}
		}
	}
	schemas := object{"connect.Error": connectError}
	for i, m := range file.GetMessageType() {
		if err := g.message(schemas, m, m.GetName(), 4, i); err != nil {
			return nil, err
		}
	}
	document := object{
		"openapi": "3.1.0",
		"info": object{
			"title":   "decoynet controller",
			"version": file.GetPackage(),
			"description": "Each method is a POST with a JSON object, and answers with one (the Connect protocol). " +
				"Binary Protobuf, gRPC and gRPC-Web clients are answered at the same addresses. " +
				"Fields that are empty, 0 or false are left out of answers. " +
				"Times are nanoseconds since 1970, written as strings as all 64-bit numbers are.",
		},
		"tags":  tags,
		"paths": paths,
		"components": object{
			"schemas": schemas,
			"securitySchemes": object{
				"apiToken":        object{"type": "http", "scheme": "bearer", "description": "The token of an API user, as CreateUser returns it."},
				"nodeCertificate": object{"type": "mutualTLS", "description": "The certificate that a machine gets when it joins."},
			},
		},
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(document); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

type generator struct {
	file     *descriptorpb.FileDescriptorProto
	comments map[string]string // by path in the descriptor
}

func (g *generator) comment(path ...int) string { return g.comments[fmt.Sprint(path)] }

// plain joins a comment's lines.
func plain(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, " ")
}

var roleWord = regexp.MustCompile(` ?Role: ([a-z]+)\.`)

// operation describes a method. Who may call it is said by the comment's "Role: ...",
// and otherwise by the service.
func (g *generator) operation(s *descriptorpb.ServiceDescriptorProto, m *descriptorpb.MethodDescriptorProto, comment string) object {
	summary, _, _ := strings.Cut(comment, ". ")
	op := object{
		"operationId": s.GetName() + "_" + m.GetName(),
		"tags":        []string{s.GetName()},
		"summary":     strings.TrimSuffix(summary, "."),
		"description": comment,
	}
	switch s.GetName() {
	case "AdminService":
		op["security"] = []object{{"apiToken": []string{}}}
		if role := roleWord.FindStringSubmatch(comment); role != nil {
			op["x-decoynet-role"] = role[1]
		}
	case "NodeService":
		op["security"] = []object{{"nodeCertificate": []string{}}}
	default:
		op["security"] = []object{}
	}
	media, returned := "application/json", "The answer."
	if m.GetServerStreaming() {
		media = "application/connect+json"
		returned = "A stream of answers, each behind five bytes: flags (0; 2 at the end, where the JSON says how the stream ended), " +
			"and the length of what follows, most significant byte first. The request's message has those five bytes as well."
		op["x-decoynet-stream"] = true
	}
	op["requestBody"] = object{"required": true, "content": object{media: object{"schema": g.ref(m.GetInputType())}}}
	op["responses"] = object{
		"200":     object{"description": returned, "content": object{media: object{"schema": g.ref(m.GetOutputType())}}},
		"default": object{"description": "The call was refused or failed.", "content": object{"application/json": object{"schema": object{"$ref": "#/components/schemas/connect.Error"}}}},
	}
	return op
}

// ref refers to a message or enum by its full name, as .decoynet.v1.Snapshot.
func (g *generator) ref(full string) object {
	return object{"$ref": "#/components/schemas/" + strings.TrimPrefix(full, "."+g.file.GetPackage()+".")}
}

// message adds the schema of a message and of what is declared in it.
func (g *generator) message(schemas object, m *descriptorpb.DescriptorProto, name string, path ...int) error {
	properties := object{}
	for i, f := range m.GetField() {
		schema, err := g.field(f)
		if err != nil {
			return fmt.Errorf("field %s.%s: %w", name, f.GetName(), err)
		}
		if comment := g.comment(append(path[:len(path):len(path)], 2, i)...); comment != "" {
			schema["description"] = comment
		}
		properties[f.GetJsonName()] = schema
	}
	schema := object{"type": "object", "properties": properties, "additionalProperties": false}
	if comment := g.comment(path...); comment != "" {
		schema["description"] = comment
	}
	if len(m.GetOneofDecl()) > 0 {
		schema["maxProperties"] = 1
	}
	schemas[name] = schema
	for i, e := range m.GetEnumType() {
		g.enum(schemas, e, name+"."+e.GetName(), append(path[:len(path):len(path)], 4, i)...)
	}
	for i, n := range m.GetNestedType() {
		if err := g.message(schemas, n, name+"."+n.GetName(), append(path[:len(path):len(path)], 3, i)...); err != nil {
			return err
		}
	}
	return nil
}

func (g *generator) enum(schemas object, e *descriptorpb.EnumDescriptorProto, name string, path ...int) {
	var names, lines []string
	for i, v := range e.GetValue() {
		names = append(names, v.GetName())
		if comment := g.comment(append(path[:len(path):len(path)], 2, i)...); comment != "" {
			lines = append(lines, v.GetName()+": "+comment)
		}
	}
	schema := object{"type": "string", "enum": names}
	if len(lines) > 0 {
		schema["description"] = strings.Join(lines, "; ")
	}
	schemas[name] = schema
}

func (g *generator) field(f *descriptorpb.FieldDescriptorProto) (object, error) {
	var schema object
	switch f.GetType() {
	case descriptorpb.FieldDescriptorProto_TYPE_STRING:
		schema = object{"type": "string"}
	case descriptorpb.FieldDescriptorProto_TYPE_BYTES:
		schema = object{"type": "string", "contentEncoding": "base64"}
	case descriptorpb.FieldDescriptorProto_TYPE_BOOL:
		schema = object{"type": "boolean"}
	case descriptorpb.FieldDescriptorProto_TYPE_UINT32:
		schema = object{"type": "integer", "minimum": 0, "maximum": uint32(1<<32 - 1)}
	case descriptorpb.FieldDescriptorProto_TYPE_INT64:
		schema = object{"type": []string{"string", "integer"}, "format": "int64"}
	case descriptorpb.FieldDescriptorProto_TYPE_UINT64:
		schema = object{"type": []string{"string", "integer"}, "format": "uint64"}
	case descriptorpb.FieldDescriptorProto_TYPE_MESSAGE, descriptorpb.FieldDescriptorProto_TYPE_ENUM:
		schema = g.ref(f.GetTypeName())
	default:
		return nil, fmt.Errorf("no words for the type %v", f.GetType())
	}
	if f.GetLabel() == descriptorpb.FieldDescriptorProto_LABEL_REPEATED {
		return object{"type": "array", "items": schema}, nil
	}
	return schema, nil
}

// connectError is what a refused or failed call answers with.
var connectError = object{
	"type":        "object",
	"description": "Why a call was refused or failed. Bad documents come back with one fault a line, as FILE:LINE:COLUMN: what is wrong.",
	"required":    []string{"code"},
	"properties": object{
		"code": object{"type": "string", "enum": []string{
			"canceled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists", "permission_denied",
			"resource_exhausted", "failed_precondition", "aborted", "out_of_range", "unimplemented", "internal", "unavailable",
			"data_loss", "unauthenticated",
		}},
		"message": object{"type": "string"},
		"details": object{"type": "array", "items": object{"type": "object"}},
	},
}
