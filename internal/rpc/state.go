package rpc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"decoynet/deception"
	"decoynet/internal/rpc/decoynetv1"
)

// EncodeState writes a node's part of the desired state for Snapshot.State. Equal
// states give equal bytes.
func EncodeState(s *deception.State) ([]byte, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("write desired state: %w", err)
	}
	return b, nil
}

// ErrUpgrade is returned by DecodeState if the controller speaks of things that
// this program does not know.
var ErrUpgrade = errors.New("upgrade this node")

// DecodeState reads the desired state of a snapshot; version is this program's. A
// field that it does not know is an error that wraps ErrUpgrade: to leave out what
// somebody has asked for would be worse than to stay with what runs.
func DecodeState(s *decoynetv1.Snapshot, version string) (*deception.State, error) {
	state := &deception.State{}
	dec := json.NewDecoder(bytes.NewReader(s.GetState()))
	dec.DisallowUnknownFields()
	err := dec.Decode(state)
	if err == nil {
		if _, extra := dec.Token(); extra != io.EOF {
			err = errors.New("something follows it")
		}
	}
	if err == nil {
		err = checkState(state)
	}
	switch {
	case err == nil:
		return state, nil
	case strings.HasPrefix(err.Error(), "json: unknown field"): // it has no type of its own
		return nil, fmt.Errorf("revision %s: %w: the controller runs %s, this node %s: %w",
			s.GetRevision(), err, orUnknown(s.GetVersion()), orUnknown(version), ErrUpgrade)
	}
	return nil, fmt.Errorf("revision %s: read desired state: %w", s.GetRevision(), err)
}

func orUnknown(version string) string {
	if version == "" {
		return "an unknown version"
	}
	return version
}

// checkState refuses what would make later steps go wrong in obscure ways. That
// names resolve was checked by the controller.
func checkState(s *deception.State) error {
	for i := range s.Decoys {
		d := &s.Decoys[i]
		for _, r := range d.Addresses {
			if err := checkRange(r); err != nil {
				return fmt.Errorf("decoy %s: %w", d.Name, err)
			}
		}
		for _, b := range d.Bind {
			if err := checkPorts(b.Ports); err != nil {
				return fmt.Errorf("decoy %s: %w", d.Name, err)
			}
		}
		if d.Idle < 0 {
			return fmt.Errorf("decoy %s: idle timeout %v is negative", d.Name, d.Idle)
		}
	}
	for i := range s.Services {
		v := &s.Services[i]
		if err := checkPorts(v.Ports); err != nil {
			return fmt.Errorf("service %s: %w", v.Name, err)
		}
		if a := v.Addr4; a.IsValid() && !a.Is4() {
			return fmt.Errorf("service %s: %s is no IPv4 address", v.Name, a)
		}
		if a := v.Addr6; a.IsValid() && (!a.Is6() || a.Is4In6()) {
			return fmt.Errorf("service %s: %s is no IPv6 address", v.Name, a)
		}
	}
	for _, g := range s.Segments {
		for _, r := range g.Exclude {
			if err := checkRange(r); err != nil {
				return fmt.Errorf("segment %s: %w", g.Name, err)
			}
		}
		for _, n := range g.Subnets {
			if !isPlain(n.Prefix.Addr()) {
				return fmt.Errorf("segment %s: bad subnet %s", g.Name, n.Prefix)
			}
		}
	}
	for _, k := range s.Scanners {
		if err := checkPorts(k.Ports); err != nil {
			return fmt.Errorf("scanner %s: %w", k.Name, err)
		}
		for _, p := range k.From {
			if !p.IsValid() || !isPlain(p.Addr()) {
				return fmt.Errorf("scanner %s: bad network %s", k.Name, p)
			}
		}
	}
	return nil
}

func isPlain(a netip.Addr) bool { return a.IsValid() && !a.Is4In6() && a.Zone() == "" }

func checkRange(r deception.AddrRange) error {
	if !isPlain(r.From) || !isPlain(r.To) || r.From.Is4() != r.To.Is4() || r.To.Less(r.From) {
		return fmt.Errorf("bad address range %s", r)
	}
	return nil
}

func checkPorts(ports []deception.PortRange) error {
	for _, r := range ports {
		if r.Transport != deception.TCP && r.Transport != deception.UDP || r.First == 0 || r.Last < r.First {
			return fmt.Errorf("bad port range %s", r)
		}
	}
	return nil
}
