package strip

import (
	"slices"
	"testing"

	"decoynet/deception"
)

// nothing is a sink that takes all.
type nothing struct{}

func (nothing) Begin(*Flow) bool                      { return true }
func (nothing) Packet(*Flow, int, int64, []byte)      {}
func (nothing) End(*Flow, int64, deception.EndReason) {}

// What a stream costs, in super-segments with checksums that are left to a card.
func BenchmarkSuperSegments(b *testing.B) { benchmark(b, 60_000, 1448) }

// What a stream costs, a segment at a time.
func BenchmarkSegments(b *testing.B) { benchmark(b, 1448, 0) }

func benchmark(b *testing.B, size, super int) {
	header := headerOf(intruder, decoy)
	c := newTalk(gateway4, server4, [2]uint32{1, 2}, slices.Concat(header, make([]byte, 6_000_000)), nil)
	c.handshake()
	c.say(Client, 0, len(header), 0)
	for at := len(header); at+size <= len(c.stream[Client]); at += size {
		c.say(Client, at, at+size, super)
		c.packets[len(c.packets)-1].Unsummed = true
	}
	b.SetBytes(int64(len(c.stream[Client])))
	b.ReportAllocs()
	for b.Loop() {
		feed(New(nothing{}, Limits{}), c.packets)
	}
}
