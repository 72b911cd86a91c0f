package suricata

import (
	"fmt"
	"strconv"

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
  memcap: %s
  reassembly: {memcap: %s, depth: %s}
app-layer:
  protocols:
    tls: {enabled: yes, ja3-fingerprints: yes, ja4-fingerprints: yes}
    ssh: {enabled: yes, hassh: yes}
`, file, tap, streamMemory, reassemblyMemory, strconv.FormatUint(want.Depth, 10))
}
