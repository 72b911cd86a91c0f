package openapi

import (
	"encoding/json"
	"testing"

	"decoynet/internal/rpc/decoynetv1"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func decoded(t *testing.T, b []byte) object {
	t.Helper()
	var out object
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func at(t *testing.T, v any, path ...string) object {
	t.Helper()
	for _, key := range path {
		o, ok := v.(object)
		if !ok || o[key] == nil {
			t.Fatalf("nothing at %q of %v", key, path)
		}
		v = o[key]
	}
	return v.(object)
}

// The committed document says what the compiled protocol is: but for the comments,
// which only protoc knows, it is what Generate makes of it now.
func TestDocumentIsCurrent(t *testing.T) {
	fresh, err := Generate(protodesc.ToFileDescriptorProto(decoynetv1.File_decoynet_proto))
	if err != nil {
		t.Fatal(err)
	}
	without := cmp.FilterPath(func(p cmp.Path) bool {
		key, ok := p.Last().(cmp.MapIndex)
		if !ok {
			return false
		}
		name := key.Key().String()
		return name == "description" || name == "summary" || name == "x-decoynet-role"
	}, cmp.Ignore())
	if diff := cmp.Diff(decoded(t, fresh), decoded(t, Document), without); diff != "" {
		t.Errorf("run `go generate ./controller/openapi` (-fresh +committed):\n%s", diff)
	}
}

func TestDocumentCoversTheProtocol(t *testing.T) {
	document := decoded(t, Document)
	file := decoynetv1.File_decoynet_proto
	methods, messages := 0, 0
	for i := range file.Services().Len() {
		s := file.Services().Get(i)
		for j := range s.Methods().Len() {
			m := s.Methods().Get(j)
			methods++
			op := at(t, document, "paths", "/"+string(s.FullName())+"/"+string(m.Name()), "post")
			for _, key := range []string{"summary", "description"} {
				if text, _ := op[key].(string); text == "" {
					t.Errorf("%s has no %s", m.FullName(), key)
				}
			}
			at(t, document, "components", "schemas", string(m.Input().Name()))
			at(t, document, "components", "schemas", string(m.Output().Name()))
		}
	}
	for i := range file.Messages().Len() {
		messages++
		covered(t, document, file.Messages().Get(i))
	}
	if got := len(at(t, document, "paths")); got != methods || methods == 0 || messages == 0 {
		t.Errorf("%d paths for %d methods", got, methods)
	}
}

func covered(t *testing.T, document object, m protoreflect.MessageDescriptor) {
	t.Helper()
	schema := at(t, document, "components", "schemas", string(m.Name()))
	properties, _ := schema["properties"].(object)
	if len(properties) != m.Fields().Len() {
		t.Errorf("%s has %d properties for %d fields", m.Name(), len(properties), m.Fields().Len())
	}
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		if properties[f.JSONName()] == nil {
			t.Errorf("%s has no property %s", m.Name(), f.JSONName())
		}
	}
}

// Everything that is referred to is there.
func TestReferencesResolve(t *testing.T) {
	document := decoded(t, Document)
	const prefix = "#/components/schemas/"
	n := 0
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case object:
			if ref, ok := v["$ref"].(string); ok {
				n++
				at(t, document, "components", "schemas", ref[len(prefix):])
			}
			for _, inner := range v {
				walk(inner)
			}
		case []any:
			for _, inner := range v {
				walk(inner)
			}
		}
	}
	walk(document)
	if n < 40 {
		t.Errorf("only %d references", n)
	}
}
