package suricata

import (
	"bytes"
	_ "embed" // the templates below
	"fmt"
	"strconv"
	"text/template"

	"decoynet/deception"
)

//go:embed suricata.yaml.tmpl
var configText string

//go:embed classification.config
var ownClasses string

//go:embed reference.config
var ownReferences string

var configTemplate = template.Must(template.New("suricata.yaml").Parse(configText))

// root is decoynet's inspect directory as Suricata sees it: an open descriptor. An
// unprivileged Suricata may not search the directories above, which are root's.
const root = "/proc/self/fd/3"

// Memory that Suricata may take for streams. What does not fit is lost to it, which
// its counters tell (Counters.MemoryDrops).
const (
	streamMemory     = "64mb"
	reassemblyMemory = "256mb"
)

// settings fill the template.
type settings struct {
	Root                           string
	Servers, Records, Protocols    []string
	TLS                            string
	JA4                            bool
	StreamMemory, ReassemblyMemory string
	Depth                          string
	Rules                          string
}

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
func configure(b *Binary, want *deception.Inspect, rules string) ([]byte, error) {
	s := settings{
		Root: root, Servers: servers, Records: records, Protocols: protocols, TLS: "{extended: yes}", JA4: b.JA4,
		StreamMemory: streamMemory, ReassemblyMemory: reassemblyMemory, Depth: strconv.FormatUint(want.Depth, 10), Rules: rules,
	}
	if b.JA4 {
		s.TLS = "{extended: yes, ja4: on}"
	}
	var out bytes.Buffer
	if err := configTemplate.Execute(&out, s); err != nil {
		return nil, fmt.Errorf("write the configuration of suricata: %w", err)
	}
	return out.Bytes(), nil
}
