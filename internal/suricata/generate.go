package suricata

import (
	_ "embed" // the texts below
	"strconv"
	"strings"

	"decoynet/deception"
)

//go:embed suricata.yaml.tmpl
var configText string

//go:embed classification.config
var ownClasses string

//go:embed reference.config
var ownReferences string

// root is decoynet's inspect directory as Suricata sees it: an open descriptor. An
// unprivileged Suricata may not search the directories above, which are root's.
const root = "/proc/self/fd/3"

// Memory that Suricata may take for streams. What does not fit is lost to it, which
// its counters tell (Counters.MemoryDrops).
const (
	streamMemory     = "64mb"
	reassemblyMemory = "256mb"
)

// servers are the groups of addresses that rules of others name.
var servers = []string{
	"HTTP_SERVERS", "SMTP_SERVERS", "SQL_SERVERS", "DNS_SERVERS", "TELNET_SERVERS", "AIM_SERVERS",
	"DC_SERVERS", "DNP3_SERVER", "DNP3_CLIENT", "MODBUS_CLIENT", "MODBUS_SERVER", "ENIP_CLIENT", "ENIP_SERVER",
}

// records are the event types without settings of their own. DHCP is none of a
// decoy's services.
var records = []string{
	"ssh", "ftp", "rdp", "nfs", "smb", "tftp", "ike", "dcerpc", "krb5", "bittorrent-dht", "snmp", "rfb", "sip", "quic", "modbus", "dnp3",
}

var protocols = []string{
	"telnet", "mqtt", "krb5", "bittorrent-dht", "snmp", "ike", "dcerpc", "ftp", "rdp", "http2", "nfs", "tftp", "ntp", "dhcp", "sip",
}

// configure returns the configuration file for a Suricata that reads the FIFO,
// with the rules of the given file in its directory.
//
// Words in double braces are replaced. Package text/template could do it as well, and
// has the linker keep every method of every type: eight megabytes.
func configure(b *Binary, want *deception.Inspect, rules string) []byte {
	tls, ja4 := "{extended: yes}", ""
	if b.JA4 {
		tls, ja4 = "{extended: yes, ja4: on}", ", ja4-fingerprints: yes"
	}
	return []byte(strings.NewReplacer(
		"{{root}}", root, "{{rules}}", rules, "{{depth}}", strconv.FormatUint(want.Depth, 10),
		"{{servers}}", lines("    ", servers, `: "any"`), "{{records}}", lines("        - ", records, ""),
		"{{protocols}}", lines("    ", protocols, ": {enabled: yes}"), "{{tls}}", tls, "{{ja4}}", ja4,
		"{{stream-memory}}", streamMemory, "{{reassembly-memory}}", reassemblyMemory,
	).Replace(configText))
}

// lines writes one line for each name.
func lines(before string, names []string, after string) string {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = before + name + after
	}
	return strings.Join(out, "\n")
}
