package ecs

import (
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"net/netip"

	"decoynet/deception"
)

// CommunityID returns the flow's Community ID, version 1 with seed 0, under
// which Suricata, Zeek and others know the same flow. It is the same for both
// directions, and empty where an address is missing.
//
// See https://github.com/corelight/community-id-spec. SHA-1 is part of the
// format; nothing here relies on its strength.
func CommunityID(t deception.Transport, a, b netip.AddrPort) string {
	if !a.IsValid() || !b.IsValid() {
		return ""
	}
	if b.Compare(a) < 0 {
		a, b = b, a
	}
	buf := make([]byte, 2, 2+16+16+2+4) // begins with the seed
	buf = append(buf, a.Addr().AsSlice()...)
	buf = append(buf, b.Addr().AsSlice()...)
	buf = append(buf, byte(t), 0) // the protocol, and a byte of padding
	buf = binary.BigEndian.AppendUint16(buf, a.Port())
	buf = binary.BigEndian.AppendUint16(buf, b.Port())
	sum := sha1.Sum(buf)
	return "1:" + base64.StdEncoding.EncodeToString(sum[:])
}
