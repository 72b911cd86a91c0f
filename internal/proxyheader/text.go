package proxyheader

import (
	"net/netip"
	"strconv"
	"strings"

	"decoynet/deception"
)

// maxText is the most bytes that a header of version 1 has, its end of line
// included.
const maxText = 107

const (
	textBegin = "PROXY "
	textEnd   = "\r\n"
)

// ParseText reads a header of version 1, which is a line of text, as Parse reads
// one of version 2. A connection whose addresses the sender does not know
// (UNKNOWN) comes out as Local: it stands for no flow that could be named.
func ParseText(b []byte) (h Header, n int, err error) {
	known := min(len(b), len(textBegin))
	if string(b[:known]) != textBegin[:known] {
		return Header{}, 0, malformed("it does not begin with %q", textBegin)
	}
	line, _, whole := strings.Cut(string(b[:min(len(b), maxText)]), textEnd)
	switch {
	case !whole && len(b) >= maxText:
		return Header{}, 0, malformed("its line has more than %d bytes", maxText)
	case !whole:
		return Header{}, 0, ErrShort
	}
	n = len(line) + len(textEnd)
	words := strings.Split(line[len(textBegin):], " ")
	if words[0] == "UNKNOWN" {
		return Header{Local: true}, n, nil // what follows is to be ignored
	}
	if len(words) != 5 || words[0] != "TCP4" && words[0] != "TCP6" {
		return Header{}, 0, malformed("%q; PROXY TCP4 or TCP6, two addresses and two ports", line)
	}
	h.Transport = deception.TCP
	four := words[0] == "TCP4"
	source, ok1 := textAddr(words[1], words[3], four)
	destination, ok2 := textAddr(words[2], words[4], four)
	if !ok1 || !ok2 || source.Addr().Is4() != destination.Addr().Is4() {
		return Header{}, 0, malformed("%q; two addresses of the family that it names, and two ports", line)
	}
	h.Source, h.Destination = source, destination
	return h, n, nil
}

func textAddr(address, port string, four bool) (netip.AddrPort, bool) {
	a, err := netip.ParseAddr(address)
	if err != nil || a.Is4() != four || a.Zone() != "" {
		return netip.AddrPort{}, false
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || port[0] == '+' || port != "0" && port[0] == '0' {
		return netip.AddrPort{}, false
	}
	// Senders whose socket takes both families write IPv4 in IPv6 form.
	return netip.AddrPortFrom(a.Unmap(), uint16(number)), true
}

// Begins tells whether b begins as a header of either version does, whole or in
// part. What Parse refuses all the same is a header that lies.
func Begins(b []byte) bool {
	return len(b) >= len(textBegin) && string(b[:len(textBegin)]) == textBegin ||
		len(b) >= len(signature) && string(b[:len(signature)]) == signature
}
