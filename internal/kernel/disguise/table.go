package disguise

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"decoynet/deception"
)

// addressKey is struct address of the BPF programs.
type addressKey struct {
	Bits   uint32
	Family uint32
	Addr   [16]byte
}

// The address families as the kernel numbers them.
const (
	familyIPv4 = 2
	familyIPv6 = 10
)

// look is struct policy of the BPF programs.
type look struct {
	OUI         [3]byte
	HasMAC      uint8
	Personality uint32
	Keys        [4]uint32
}

// The personalities of struct policy.
const (
	personalityNone = iota
	personalityLinux
	personalityWindows
)

func (l look) windows() bool { return l.Personality == personalityWindows }

// table is what the programs look up.
type table map[netip.Prefix]look

// compile checks the policies and turns them into the table. A prefix at fault
// never blocks the others; each fault is one of the errors.
func compile(policies []Policy) (table, error) {
	t := table{}
	var errs []error
	for i := range policies {
		p := &policies[i]
		l, err := p.look()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, prefix := range p.Prefixes {
			if err := t.add(prefix, l); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return t, errors.Join(errs...)
}

func (p *Policy) look() (look, error) {
	l := look{OUI: p.OUI}
	if p.OUI.IsValid() {
		if p.OUI[0]&1 != 0 {
			return look{}, fmt.Errorf("%w: %s begins MAC addresses of groups", ErrInvalid, p.OUI)
		}
		l.HasMAC, l.Keys = 1, roundKeys(p.Seed)
	}
	switch p.Personality {
	case "":
	case deception.PersonalityLinux:
		l.Personality = personalityLinux
	case deception.PersonalityWindows:
		l.Personality = personalityWindows
	default:
		return look{}, fmt.Errorf("%w: personality %q", ErrInvalid, p.Personality)
	}
	return l, nil
}

func (t table) add(prefix netip.Prefix, l look) error {
	if !prefix.IsValid() || prefix.Masked() != prefix || prefix.Addr().Is4In6() {
		return fmt.Errorf("%w: prefix %s", ErrInvalid, prefix)
	}
	if old, taken := t[prefix]; taken && old != l {
		return fmt.Errorf("%w: prefix %s looks in two ways", ErrInvalid, prefix)
	}
	t[prefix] = l
	return nil
}

func (t table) any(is func(look) bool) bool {
	for _, l := range t {
		if is(l) {
			return true
		}
	}
	return false
}

// entries are the table as the kernel takes it, in a fixed order.
func (t table) entries() ([]addressKey, []look) {
	prefixes := slices.SortedFunc(maps.Keys(t), netip.Prefix.Compare)
	keys, looks := make([]addressKey, len(prefixes)), make([]look, len(prefixes))
	for i, p := range prefixes {
		k := addressKey{Bits: 32 + uint32(p.Bits()), Family: familyIPv6}
		if p.Addr().Is4() {
			k.Family = familyIPv4
		}
		copy(k.Addr[:], p.Addr().AsSlice())
		keys[i], looks[i] = k, t[p]
	}
	return keys, looks
}

// fingerprint tells whether filters that stand hold this program and this table,
// so that nothing has to be read back from the kernel.
func (t table) fingerprint(program []byte, lan net.HardwareAddr) string {
	var all bytes.Buffer
	all.Write(program)
	all.Write(lan)
	keys, looks := t.entries()
	_ = binary.Write(&all, binary.LittleEndian, keys) // of fixed size: a buffer takes it
	_ = binary.Write(&all, binary.LittleEndian, looks)
	sum := sha256.Sum256(all.Bytes())
	return hex.EncodeToString(sum[:8])
}
