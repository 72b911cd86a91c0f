package deception

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// MACPrefix is the first half of a MAC address, an organisation's identifier
// (IEEE OUI). The zero value stands for none.
type MACPrefix [3]byte

// IsValid tells whether there is a prefix.
func (p MACPrefix) IsValid() bool { return p != MACPrefix{} }

// String writes the prefix as the document does: 00:14:22; "" where there is none.
func (p MACPrefix) String() string {
	if !p.IsValid() {
		return ""
	}
	return fmt.Sprintf("%02x:%02x:%02x", p[0], p[1], p[2])
}

// MarshalText implements encoding.TextMarshaler.
func (p MACPrefix) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *MACPrefix) UnmarshalText(text []byte) (err error) {
	if len(text) == 0 {
		*p = MACPrefix{}
		return nil
	}
	*p, err = ParseMACPrefix(string(text))
	return err
}

// ParseMACPrefix reads 00:14:22, also with hyphens. Its errors say what is wrong
// and what would be right.
func ParseMACPrefix(s string) (MACPrefix, error) {
	const form = "three bytes as 00:14:22"
	parts := strings.Split(strings.ReplaceAll(s, "-", ":"), ":")
	if len(parts) == 6 {
		return MACPrefix{}, fmt.Errorf("%q is a whole MAC address; write its first %s, the rest is made for each decoy", s, form)
	}
	raw, err := hex.DecodeString(strings.Join(parts, ""))
	if err != nil || len(parts) != 3 || len(raw) != 3 || slices.ContainsFunc(parts, func(p string) bool { return len(p) != 2 }) {
		return MACPrefix{}, fmt.Errorf("%q is no prefix of MAC addresses; write %s", s, form)
	}
	p := MACPrefix(raw)
	switch {
	case !p.IsValid():
		return MACPrefix{}, fmt.Errorf("%q stands for no vendor; write a vendor's %s", s, form)
	case p[0]&1 != 0: // IEEE 802-2014, section 8.2.2
		return MACPrefix{}, fmt.Errorf("%q is a prefix of group addresses, which no host has; the first byte must be even, as %s",
			s, MACPrefix{p[0] &^ 1, p[1], p[2]})
	}
	return p, nil
}

// vendors are prefixes that the IEEE has assigned, one for each vendor whose
// devices stand in offices, plants and data centres.
var vendors = map[string]MACPrefix{
	"apple":       {0x3c, 0x22, 0xfb},
	"axis":        {0xac, 0xcc, 0x8e},
	"brother":     {0x00, 0x80, 0x77},
	"canon":       {0x00, 0x1e, 0x8f},
	"cisco":       {0x00, 0x1b, 0x54},
	"dell":        {0x00, 0x14, 0x22},
	"fortinet":    {0x00, 0x09, 0x0f},
	"hikvision":   {0x28, 0x57, 0xbe},
	"hp":          {0x3c, 0xd9, 0x2b},
	"hpe":         {0x94, 0x40, 0xc9},
	"intel":       {0x00, 0x1b, 0x21},
	"juniper":     {0x00, 0x05, 0x85},
	"lenovo":      {0x10, 0xc5, 0x95},
	"microsoft":   {0x00, 0x15, 0x5d},
	"qnap":        {0x24, 0x5e, 0xbe},
	"raspberrypi": {0xb8, 0x27, 0xeb},
	"ricoh":       {0x00, 0x26, 0x73},
	"rockwell":    {0x00, 0x00, 0xbc},
	"schneider":   {0x00, 0x00, 0x54},
	"siemens":     {0x00, 0x1b, 0x1b},
	"supermicro":  {0x00, 0x25, 0x90},
	"synology":    {0x00, 0x11, 0x32},
	"vmware":      {0x00, 0x50, 0x56},
	"xerox":       {0x00, 0x00, 0xaa},
}

// VendorPrefix returns a prefix of the vendor's MAC addresses.
func VendorPrefix(name string) (MACPrefix, bool) {
	p, ok := vendors[name]
	return p, ok
}

// Vendors returns the names that VendorPrefix knows, sorted.
func Vendors() []string { return slices.Sorted(maps.Keys(vendors)) }

// Personality names the family of operating systems whose TCP/IP a decoy shows;
// empty where it shows the node's own.
type Personality string

// The personalities.
const (
	PersonalityLinux   Personality = "linux"
	PersonalityWindows Personality = "windows"
)
