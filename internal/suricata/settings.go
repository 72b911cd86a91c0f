package suricata

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"decoynet/deception"
)

// Settings is what an existing Suricata's configuration needs for decoynet's feed
// and for its events to be tied to sessions.
func Settings(want *deception.Inspect) string {
	tap := want.Tap
	if tap == "" {
		tap = "vtap0"
	}
	file := want.EVE
	if file == "" {
		file = "/var/log/suricata/eve.json"
	}
	return fmt.Sprintf(`# In suricata.yaml, besides what is there. "decoynet rules export" writes decoynet's rules.
outputs:
  - eve-log:
      enabled: yes
      filetype: regular        # a socket drops events while its reader is slow
      filename: %s
      ethernet: yes            # the session's number is in the MAC addresses
      community-id: true
      types:                   # decoynet stores each of them; more are welcome
        - alert
        - anomaly
        - http: {extended: yes}
        - dns
        - tls: {extended: yes, custom: [subject, issuer, serial, fingerprint, sni, version, not_before, not_after, ja3, ja3s, ja4]}
        - files: {force-hash: [sha256]}
        - ssh
        - smb
        - ftp
        - rdp
        - smtp
        - krb5
        - snmp
        - flow
        - stats                # decoynet tells what Suricata lost
stats: {enabled: yes, interval: 8}
vlan:
  use-for-tracking: true       # overlapping addresses of two segments are told apart
af-packet:
  - interface: %s
    cluster-id: 99
    cluster-type: cluster_flow
    checksum-checks: no        # mirrored frames have those of their sender
vars:
  address-groups:
    HOME_NET: "any"            # decoys and intruders have any address
    EXTERNAL_NET: "any"
flow-timeouts:
  tcp: {established: 7200}     # a shell may be silent for longer than 600 s
stream:
  checksum-validation: no
  inline: yes                  # else the first bytes of a shell are looked at after 2,560 of them, or when it ends.
                               # It is for all interfaces: leave it out if you listen to others than decoynet's
  memcap: %s
  reassembly: {memcap: %s, depth: %s}
app-layer:
  protocols:
    tls: {enabled: yes, ja3-fingerprints: yes, ja4-fingerprints: yes}
    ssh: {enabled: yes, hassh: yes}
`, file, tap, streamMemory, reassemblyMemory, strconv.FormatUint(want.Depth, 10))
}

// Rule is one of decoynet's own rules.
type Rule struct {
	SID      uint32 `json:"sid"`
	Class    string `json:"class"`
	Severity int    `json:"severity"`
	Message  string `json:"message"`
	Text     string `json:"rule"`
}

// Rules lists decoynet's own rules that can fire.
func Rules() ([]Rule, error) {
	set := &ruleset{}
	if err := set.own(make(map[uint64]Place)); err != nil {
		return nil, err
	}
	severities := classSeverities(ownClasses)
	var out []Rule
	for i := range set.rules {
		r := Rule{SID: uint32(set.rules[i].sid), Text: set.rules[i].text}
		silent := false
		for option := range options(r.Text) {
			name, value, _ := strings.Cut(strings.TrimSpace(option), ":")
			switch {
			case name == "msg":
				r.Message = strings.Trim(value, `"`)
			case name == "classtype":
				r.Class, r.Severity = value, severities[value]
			case name == "flowbits" && value == "noalert":
				silent = true
			}
		}
		if !silent {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b Rule) int { return cmp.Compare(a.SID, b.SID) })
	return out, nil
}

func classSeverities(text string) map[string]int {
	out := make(map[string]int)
	for line := range strings.Lines(text) {
		if name := className(line); name != "" {
			line = strings.TrimSpace(line)
			out[name], _ = strconv.Atoi(line[strings.LastIndexByte(line, ',')+1:])
		}
	}
	return out
}

// Export writes decoynet's rules and their class types into a directory, for a
// Suricata that others run. Files of these names are replaced.
func Export(dir string) ([]string, error) {
	set := &ruleset{}
	if err := set.own(make(map[uint64]Place)); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("export rules: %w", err)
	}
	var rules strings.Builder
	if _, err := set.WriteTo(&rules); err != nil {
		return nil, fmt.Errorf("export rules: %w", err)
	}
	var written []string
	for _, f := range []struct {
		name string
		text []byte
	}{{"decoynet.rules", []byte(rules.String())}, {"decoynet-classification.config", []byte(ownClasses)}} {
		path := filepath.Join(dir, f.name)
		if err := os.WriteFile(path, f.text, 0o644); err != nil {
			return written, fmt.Errorf("export rules: %w", err)
		}
		written = append(written, path)
	}
	return written, nil
}
