package eve

import "bytes"

// Trimming a document takes the fattest members out, one after the other, and
// notes their names in a member of its own: "trimmed":["payload","http.url"].
const (
	maxTrims    = 64
	maxTrimName = 128
	trimRoom    = 2048 // for the names
)

// twins are long texts that a document has a second time, readable; and those go
// first.
var twins = [...][]string{
	{"payload"},
	{"http", "http_request_body"},
	{"http", "http_response_body"},
}

// kept are the members that are not trimmed as a whole.
var kept = map[string]bool{
	"event_type": true, "src_ip": true, "src_port": true, "dest_ip": true, "dest_port": true, "proto": true,
	"community_id": true, "flow_id": true, "alert": true, "app_proto": true, "direction": true, "tx_id": true,
}

// trim shortens a document to the limit. It may fail to: where it is made of very
// many small members, or the alert itself is what is fat.
func trim(doc []byte, limit int) []byte {
	var names [][]byte
	for _, path := range twins {
		if len(doc) <= limit-trimRoom {
			break
		}
		if cut, ok := drop(doc, path); ok {
			doc = cut
			names = append(names, []byte(dotted(path)))
		}
	}
	for left := maxTrims; left > 0 && len(doc) > limit-trimRoom; left-- {
		path, size := fattest(doc)
		if size*left < len(doc)-limit {
			break // that many times the fattest is not enough
		}
		cut, ok := drop(doc, path)
		if !ok {
			break
		}
		doc = cut
		names = append(names, []byte(dotted(path)))
	}
	list := []byte("[")
	for i, name := range names {
		if len(list)+len(name)+16 > trimRoom {
			list = append(list, `,"..."`...)
			break
		}
		if i > 0 {
			list = append(list, ',')
		}
		list = append(append(append(list, '"'), name...), '"')
	}
	return append(appendMember(doc[:len(doc)-1], []byte("trimmed"), append(list, ']')), '}')
}

// dotted is a path as one name. Its parts are as they are written in the
// document, so that the name needs no quoting.
func dotted(path []string) string {
	size := 0
	name := ""
	for i, part := range path {
		if size += len(part) + 1; size > maxTrimName {
			return name + "..."
		}
		if i > 0 {
			name += "."
		}
		name += part
	}
	return name
}

// fattest returns where the member is that is worth dropping, and its size: the
// largest, or within it the largest again where that is much of it.
func fattest(doc []byte) (path []string, size int) {
	for top := true; ; top = false {
		list, err := members(nil, doc)
		if err != nil {
			return path, size // a text, a list: it goes as a whole
		}
		most := -1
		for i := range list {
			if top && kept[string(list[i].name)] {
				continue
			}
			if most < 0 || len(list[i].value) > len(list[most].value) {
				most = i
			}
		}
		if most < 0 || !top && len(list[most].value) < len(doc)/8 {
			return path, size
		}
		path = append(path, string(list[most].name))
		doc, size = list[most].value, len(list[most].value)
	}
}

// drop returns the document without the member at the path; false where it has
// none.
func drop(doc []byte, path []string) ([]byte, bool) {
	if len(path) == 0 {
		return doc, false
	}
	list, err := members(nil, doc)
	if err != nil {
		return doc, false
	}
	out := append(make([]byte, 0, len(doc)), '{')
	found := false
	for i := range list {
		v := list[i].value
		if !found && bytes.Equal(list[i].name, []byte(path[0])) {
			if len(path) == 1 {
				found = true
				continue
			}
			v, found = drop(v, path[1:])
		}
		out = appendMember(out, list[i].name, v)
	}
	return append(out, '}'), found
}
