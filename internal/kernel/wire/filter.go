package wire

import (
	"fmt"

	"golang.org/x/net/bpf"
)

// Ancillary data and packet types of packet filters (linux/filter.h,
// linux/if_packet.h) that package bpf has no name for.
const packetOutgoing = 4

// beyond is how much is copied of the header behind the last one: that of a
// neighbour advertisement with its option needs 32 bytes.
const beyond = 40

// step is an instruction, or the name of a place, or both. A jump names where it
// leads to; what it leaves empty is the next instruction.
type step struct {
	name    string
	do      bpf.Instruction
	yes, no string
}

// Steps with fewer words.
func load(offset uint32, size int) step { return step{do: bpf.LoadAbsolute{Off: offset, Size: size}} }

func loadAt(offset uint32, size int) step { return step{do: bpf.LoadIndirect{Off: offset, Size: size}} }
func place(name string) step              { return step{name: name} }

func when(cond bpf.JumpTest, value uint32, yes, no string) step {
	return step{do: bpf.JumpIf{Cond: cond, Val: value}, yes: yes, no: no}
}

func alu(op bpf.ALUOp, value uint32) step { return step{do: bpf.ALUOpConstant{Op: op, Val: value}} }

// compile returns the program that takes frames of these kinds as they come in,
// and of each as many bytes as decode reads.
func compile(kinds Kinds) ([]bpf.RawInstruction, error) {
	return assemble(append(arrival(), selection(kinds)...))
}

// arrival refuses what is sent, and what belongs to a VLAN: it comes past every
// packet socket at the parent link, though no device of this namespace takes it.
// VLAN 0 is a priority only (IEEE 802.1Q), as if there were no tag.
func arrival() []step {
	return []step{
		{do: bpf.LoadExtension{Num: bpf.ExtType}},
		when(bpf.JumpEqual, packetOutgoing, "drop", ""),
		{do: bpf.LoadExtension{Num: bpf.ExtVLANTagPresent}},
		when(bpf.JumpEqual, 0, "untagged", ""),
		{do: bpf.LoadExtension{Num: bpf.ExtVLANTag}},
		when(bpf.JumpBitsSet, 0xfff, "drop", ""),
		place("untagged"),
	}
}

// selection is decode in the kernel's words.
func selection(kinds Kinds) []step {
	take := func(k Kind, where string) string {
		if kinds.Has(k) {
			return where
		}
		return "drop"
	}
	s := []step{
		load(12, 2),
		when(bpf.JumpEqual, etherARP, "arp", ""),
		when(bpf.JumpEqual, etherIPv4, "ipv4", ""),
		when(bpf.JumpEqual, etherIPv6, "ipv6", "drop"),

		place("arp"),
		load(14, 4),
		when(bpf.JumpEqual, 0x0001_0800, "", "drop"),
		load(18, 2),
		when(bpf.JumpEqual, 0x0604, "", "drop"),
		load(etherHeader+arpBody-4, 4), // is it all there?
		load(20, 2),
		when(bpf.JumpEqual, 1, take(ARPRequest, "take arp"), ""),
		when(bpf.JumpEqual, 2, take(ARPReply, "take arp"), "drop"),
		place("take arp"),
		{do: bpf.RetConstant{Val: etherHeader + arpBody}},

		place("ipv4"),
		load(etherHeader, 1),
		when(bpf.JumpLessThan, 0x45, "drop", ""),
		when(bpf.JumpGreaterThan, 0x4f, "drop", ""),
		load(etherHeader+6, 2),
		when(bpf.JumpBitsSet, 0x1fff, "drop", ""),
		{do: bpf.LoadMemShift{Off: etherHeader}},
		{do: bpf.TXA{}},
		alu(bpf.ALUOpAdd, etherHeader),
		{do: bpf.TAX{}},
		load(etherHeader+9, 1),
		when(bpf.JumpEqual, protoTCP, take(SYN, "tcp"), ""),
		when(bpf.JumpEqual, protoUDP, take(Datagram, "udp"), ""),
		when(bpf.JumpEqual, protoICMP, "", "drop"),
		loadAt(0, 1),
		when(bpf.JumpEqual, icmpEcho, take(Echo, "take"), "drop"),

		place("ipv6"),
		load(etherHeader, 1),
		alu(bpf.ALUOpShiftRight, 4),
		when(bpf.JumpEqual, 6, "", "drop"),
		{do: bpf.LoadConstant{Dst: bpf.RegX, Val: etherHeader + ip6Size}},
		load(etherHeader+6, 1),
	}
	for i := range extensionHeaders {
		s = append(s, extension(i, "drop")...)
	}
	return append(s,
		place("extensions done"),
		when(bpf.JumpEqual, protoTCP, take(SYN, "tcp"), ""),
		when(bpf.JumpEqual, protoUDP, take(Datagram, "udp"), ""),
		when(bpf.JumpEqual, protoICMPv6, "", "drop"),
		loadAt(0, 1),
		when(bpf.JumpEqual, icmp6Echo, take(Echo, "take"), ""),
		when(bpf.JumpEqual, icmp6Solicitation, take(Solicitation, "neighbour"), ""),
		when(bpf.JumpEqual, icmp6Advert, take(Advertisement, "neighbour"), "drop"),
		place("neighbour"),
		loadAt(ndBody-1, 1),
		load(etherHeader+7, 1),
		when(bpf.JumpEqual, 255, "take", "drop"),

		place("tcp"),
		loadAt(13, 1),
		alu(bpf.ALUOpAnd, flagSYN|flagACK),
		when(bpf.JumpEqual, flagSYN, "take", "drop"),
		place("udp"),
		loadAt(4, 4), // a header cut short ends the program here, with 0

		place("take"),
		step{do: bpf.TXA{}},
		alu(bpf.ALUOpAdd, beyond),
		step{do: bpf.RetA{}},
		step{name: "drop", do: bpf.RetConstant{Val: 0}},
	)
}

// extension looks behind one IPv6 extension header: the kind of header is in A
// and its place in X, before as after. It jumps to drop where the packet is a later
// fragment. The language has no loops.
func extension(i int, drop string) []step {
	sized, fragment, next := fmt.Sprint("sized ", i), fmt.Sprint("fragment ", i), fmt.Sprint("next ", i)
	const kind = 0 // scratch memory
	return []step{
		when(bpf.JumpEqual, headerHopByHop, sized, ""),
		when(bpf.JumpEqual, headerRouting, sized, ""),
		when(bpf.JumpEqual, headerDestination, sized, ""),
		when(bpf.JumpEqual, headerFragment, fragment, "extensions done"),

		place(sized),
		loadAt(0, 1),
		{do: bpf.StoreScratch{Src: bpf.RegA, N: kind}},
		loadAt(1, 1),
		alu(bpf.ALUOpAdd, 1),
		alu(bpf.ALUOpShiftLeft, 3),
		when(bpf.JumpGreaterThan, 0, next, next), // in any case

		place(fragment),
		loadAt(2, 2),
		when(bpf.JumpBitsSet, 0xfff8, drop, ""),
		loadAt(0, 1),
		{do: bpf.StoreScratch{Src: bpf.RegA, N: kind}},
		{do: bpf.LoadConstant{Dst: bpf.RegA, Val: 8}},

		place(next),
		{do: bpf.ALUOpX{Op: bpf.ALUOpAdd}},
		{do: bpf.TAX{}},
		{do: bpf.LoadScratch{Dst: bpf.RegA, N: kind}},
	}
}

// assemble resolves the names of places and returns the program.
func assemble(steps []step) ([]bpf.RawInstruction, error) {
	at, n := map[string]int{}, 0
	for _, s := range steps {
		if s.name != "" {
			at[s.name] = n
		}
		if s.do != nil {
			n++
		}
	}
	var program []bpf.Instruction
	for _, s := range steps {
		if s.do == nil {
			continue
		}
		if _, ok := s.do.(bpf.Jump); ok {
			to, ok := at[s.yes]
			if !ok || to <= len(program) {
				return nil, fmt.Errorf("packet filter: no jump from instruction %d to %q", len(program), s.yes)
			}
			s.do = bpf.Jump{Skip: uint32(to - len(program) - 1)}
		}
		if jump, ok := s.do.(bpf.JumpIf); ok {
			var err error
			if jump.SkipTrue, err = skip(at, len(program), s.yes); err != nil {
				return nil, err
			}
			if jump.SkipFalse, err = skip(at, len(program), s.no); err != nil {
				return nil, err
			}
			s.do = jump
		}
		program = append(program, s.do)
	}
	return bpf.Assemble(program)
}

// skip returns how many instructions lie between the jump and the place.
func skip(at map[string]int, from int, name string) (uint8, error) {
	if name == "" {
		return 0, nil
	}
	to, ok := at[name]
	if n := to - from - 1; ok && n >= 0 && n <= 255 {
		return uint8(n), nil
	}
	return 0, fmt.Errorf("packet filter: no jump from instruction %d to %q", from, name)
}
