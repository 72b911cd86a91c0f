package eve

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
)

// kindStats is the event type that tells of Suricata itself. It is no finding.
const kindStats = "stats"

// maxText bounds a rule's message and class.
const maxText = 1024

// event is a line of the file, as far as it is looked into.
type event struct {
	members []member
	kind    string
	time    time.Time

	flow    uint64 // Suricata's own number of the flow
	hasFlow bool
	packet  bool // it tells of a packet that was captured, or of a whole flow

	source, destination netip.AddrPort // of the event; not valid where it has none
	ports               bool
	proto               string
	transport           deception.Transport

	ethernet bool // it has MAC addresses
	named    bool // and they are those of a session
	key      deception.SessionKey
	reversed bool // the source of the event, as written, is the decoy
	turned   bool // source and destination were exchanged since
}

// parse reads a line. Room for its members is taken from e and stays there.
func (e *event) parse(line []byte) error {
	room := e.members[:0]
	*e = event{}
	var err error
	if e.members, err = members(room, line); err != nil {
		return err
	}
	e.kind = text(find(e.members, "event_type"), maxKind+1)
	if !validKind(e.kind) {
		return fmt.Errorf("its event_type %q is no word", e.kind)
	}
	if e.time, err = time.Parse("2006-01-02T15:04:05.999999999Z0700", text(find(e.members, "timestamp"), 64)); err != nil {
		return errors.New("it has no timestamp")
	}
	if e.kind == kindStats {
		return nil
	}
	e.flow, e.hasFlow = count(find(e.members, "flow_id"))
	e.addresses()
	source := text(find(e.members, "pkt_src"), 64)
	e.packet = source != "" && !strings.HasPrefix(source, "stream") || e.kind == deception.KindFlow || e.kind == "netflow"
	if v := find(e.members, "ether"); v != nil {
		e.stations(v)
	}
	return nil
}

// maxKind bounds an event type.
const maxKind = 32

func validKind(s string) bool {
	for i := range len(s) {
		if c := s[i]; !digit(c) && (c|0x20 < 'a' || c|0x20 > 'z') && c != '_' && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= maxKind
}

func (e *event) addresses() {
	from, fromErr := netip.ParseAddr(text(find(e.members, "src_ip"), 64))
	to, toErr := netip.ParseAddr(text(find(e.members, "dest_ip"), 64))
	if fromErr != nil || toErr != nil {
		return
	}
	fromPort, hasFrom := count(find(e.members, "src_port"))
	toPort, hasTo := count(find(e.members, "dest_port"))
	e.ports = hasFrom && hasTo && fromPort <= 0xffff && toPort <= 0xffff
	if !e.ports {
		fromPort, toPort = 0, 0
	}
	e.source = netip.AddrPortFrom(from.Unmap(), uint16(fromPort))
	e.destination = netip.AddrPortFrom(to.Unmap(), uint16(toPort))
	e.proto = text(find(e.members, "proto"), 32)
	switch e.proto {
	case "TCP":
		e.transport = deception.TCP
	case "UDP":
		e.transport = deception.UDP
	}
}

// maxStations is how many MAC addresses of a flow are looked at. A flow of one
// session has one of each side.
const maxStations = 8

// stations reads the MAC addresses of a packet, or those that a flow had.
func (e *event) stations(ether []byte) {
	var room [8]member
	list, err := members(room[:0], ether)
	if err != nil {
		return
	}
	var a, b [maxStations]frame.MAC
	from := macs(a[:0], find(list, "src_mac"), find(list, "src_macs"))
	to := macs(b[:0], find(list, "dest_mac"), find(list, "dest_macs"))
	e.ethernet = len(from) > 0 && len(to) > 0
	for _, x := range from {
		for _, y := range to {
			if e.key, e.reversed, e.named = frame.Key(x, y); e.named {
				return
			}
		}
	}
}

// macs appends the address that is in one, or those in many.
func macs(into []frame.MAC, one, many []byte) []frame.MAC {
	for len(one) > 0 || len(many) > 0 {
		if len(one) == 0 {
			start := bytes.IndexByte(many, '"')
			if start < 0 || len(into) == cap(into) {
				return into
			}
			end := quoted(many, start)
			one, many = many[start:end], many[end:]
		}
		if mac, err := frame.ParseMAC(text(one, 32)); err == nil {
			into = append(into, mac)
		}
		one = nil
	}
	return into
}

// protocols are the event types that are named after an application protocol.
// Such an event says by its type what the flow is.
var protocols = map[string]string{
	"http": "http", "http2": "http2", "tls": "tls", "ssh": "ssh", "smb": "smb", "dns": "dns", "smtp": "smtp", "ftp": "ftp",
	"ftp_data": "ftp-data", "rdp": "rdp", "nfs": "nfs", "tftp": "tftp", "ike": "ike", "krb5": "krb5", "snmp": "snmp",
	"rfb": "rfb", "sip": "sip", "quic": "quic", "dhcp": "dhcp", "mqtt": "mqtt", "pgsql": "pgsql", "dcerpc": "dcerpc",
	"dnp3": "dnp3", "modbus": "modbus", "enip": "enip", "bittorrent_dht": "bittorrent-dht", "telnet": "telnet",
}

// application is the flow's application protocol, "" where Suricata has none.
func (e *event) application() string {
	switch name := text(find(e.members, "app_proto"), maxKind); name {
	case "", "failed", "unknown":
		if e.kind == "http" && text(find(e.object("http"), "version"), 8) == "2" {
			return "http2"
		}
		return protocols[e.kind]
	default:
		return name
	}
}

// object returns the members of a member.
func (e *event) object(name string) []member {
	list, err := members(nil, find(e.members, name))
	if err != nil {
		return nil
	}
	return list
}

// alert reads what a rule says.
func (e *event) alert() *deception.Alert {
	list := e.object("alert")
	number := func(name string) uint32 {
		n, _ := count(find(list, name))
		return uint32(min(n, 1<<32-1))
	}
	a := &deception.Alert{
		GID: number("gid"), SID: number("signature_id"), Revision: number("rev"),
		Signature: text(find(list, "signature"), maxText),
		Category:  text(find(list, "category"), maxText),
		Severity:  255,
		ToService: text(find(e.members, "direction"), 16) != "to_client",
	}
	if n := number("severity"); n > 0 && n < 255 {
		a.Severity = uint8(n)
	}
	return a
}

// identifier makes the identifier of the event at an offset: a UUID of version 7
// of its time. The rest is a hash of the line and of where it stands in its file,
// so that two equal events are two. Neither changes where the file is renamed or
// copied. The hash is one that an intruder cannot bend, for most of the line is
// what intruders sent.
func (e *event) identifier(line []byte, offset int64) deception.SessionID {
	h := sha256.New()
	_, _ = h.Write(line)
	var at [8]byte
	binary.BigEndian.PutUint64(at[:], uint64(offset))
	_, _ = h.Write(at[:])
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	var id deception.SessionID
	copy(id[6:], sum[:])
	millis := uint64(max(0, e.time.UnixMilli()))
	binary.BigEndian.PutUint32(id[:4], uint32(millis>>16))
	binary.BigEndian.PutUint16(id[4:6], uint16(millis))
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}
