package suricata

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"decoynet/deception"
)

// Files that rules name are found beside the rules, though Suricata could not open
// them there; a missing one is named with its rule.
func TestFilesOfRules(t *testing.T) {
	dir := closedDir(t)
	write(t, filepath.Join(dir, "agents.lst"), "bmVlZGxl\n") // needle, in base64
	write(t, filepath.Join(dir, "agents.rep"), "bmVlZGxl,100\n")
	path := filepath.Join(dir, "own.rules")
	good := `
alert http any any -> any any (msg:"in a list"; http.user_agent; dataset:isset,agents,type string,load agents.lst; sid:1000001;)
alert http any any -> any any (msg:"of a bad name"; http.user_agent; datarep:names,>,50,type string,load ` + dir + `/agents.rep; sid:1000002;)
alert http any any -> any any (msg:"kept in a file of Suricata's"; http.uri; dataset:set,seen,type string,state seen.lst; sid:1000003;)
`
	write(t, path, good)
	client, server := netip.MustParseAddrPort("198.18.0.1:40000"), netip.MustParseAddrPort("10.9.0.7:80")
	frames := conversation(client, server, say{true, "GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: needle\r\n\r\n"}, say{false, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"})
	var fired []uint32
	for _, e := range analyse(t, &deception.Inspect{Rules: []string{path}}, frames) {
		if e.Type == "alert" && e.Alert.SID < 14200000 {
			fired = append(fired, e.Alert.SID)
		}
	}
	slices.Sort(fired)
	if !slices.Equal(fired, []uint32{1000001, 1000002}) {
		t.Errorf("rules %v fired", fired)
	}

	// They do not pile up.
	h, err := openHome(filepath.Join(closedDir(t), "inspect"))
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	write(t, h.file(filesDir+"/of-before.lst"), "x")
	set := &ruleset{attached: map[string]string{filesDir + "/of-now.lst": "/now"}}
	write(t, h.file(filesDir+"/of-now.lst"), "x")
	if err := h.removeFiles(set); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(h.file(filesDir + "/*")); len(left) != 1 || filepath.Base(left[0]) != "of-now.lst" {
		t.Errorf("left: %v", left)
	}

	// What is in a list is part of the set.
	sum := func() string {
		set, err := gather(&deception.Inspect{Rules: []string{path}})
		if err != nil {
			t.Fatal(err)
		}
		return set.sum("7")
	}
	before := sum()
	write(t, filepath.Join(dir, "agents.lst"), "dGhyZWFk\n")
	if sum() == before {
		t.Error("a set with another list is taken for the same")
	}

	if err := os.Remove(filepath.Join(dir, "agents.lst")); err != nil {
		t.Fatal(err)
	}
	_, err = Check(t.Context(), "", &deception.Inspect{Rules: []string{path}})
	if !errors.Is(err, ErrRules) || !strings.Contains(fmt.Sprint(err), path+":2: ") || !strings.Contains(err.Error(), "agents.lst: no such file") {
		t.Errorf("a missing list: %v", err)
	}
}
