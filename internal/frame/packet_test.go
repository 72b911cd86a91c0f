package frame

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"decoynet/deception"
)

// TestTsharkAgrees has tshark read frames of many lengths, by both families and
// with no tag, one and two.
func TestTsharkAgrees(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, MaxDatagram)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	families := [][2]string{{"192.0.2.7:40001", "198.51.100.4:9999"}, {"[2001:db8::7]:40001", "[2001:db8:ffff:ffff::4]:9999"}}
	intruder, decoy := Addresses(deception.SessionKey{Hi: 1<<45 - 3, Lo: 77})
	file := AppendFileHeader(nil)
	var want []string
	add := func(frame []byte, tags Tags, length int) {
		file = AppendRecord(file, int64(len(want))*1e6+1e18, frame)
		seen := fmt.Sprint(tags[0], ",", tags[1])
		seen = strings.ReplaceAll(strings.ReplaceAll(seen, ",0", ""), "0", "")
		want = append(want, fmt.Sprintf("%s|%d", seen, length))
	}
	for _, pair := range families {
		from, to := netip.MustParseAddrPort(pair[0]), netip.MustParseAddrPort(pair[1])
		for _, tags := range []Tags{{}, {7}, {9, 4}} {
			tcp := NewHeader(deception.TCP, intruder, decoy, tags, from, to)
			udp := NewHeader(deception.UDP, decoy, intruder, tags, to, from)
			seq := random.Uint32()
			for n := 0; n < 140; n++ {
				length := n
				if n > 70 {
					length = random.IntN(tcp.Cut() + 1)
				}
				flags := uint8(ACK | PSH)
				if n == 0 {
					flags = SYN
				}
				at := random.IntN(1000)
				add(tcp.TCP(nil, &Segment{Flags: flags, ID: uint16(n), Seq: seq, Ack: 1, Data: data[at : at+length]}), tags, length)
				seq += uint32(length)
				add(udp.UDP(nil, uint16(n), data[at:at+length]), tags, length)
			}
			add(udp.UDP(nil, 1, data), tags, len(data))
		}
	}
	path := filepath.Join(t.TempDir(), "all.pcap")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("tshark", "-r", path, "-n", "-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE",
		"-o", "tcp.analyze_sequence_numbers:FALSE", "-T", "fields", "-E", "separator=|", "-e", "vlan.id", "-e", "tcp.len", "-e", "udp.length",
		"-e", "ip.checksum.status", "-e", "tcp.checksum.status", "-e", "udp.checksum.status", "-e", "_ws.malformed", "-e", "eth.type", "-e", "frame.cap_len")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	if len(lines) != len(want) {
		t.Fatalf("tshark read %d frames, want %d", len(lines), len(want))
	}
	for i, line := range lines {
		f := strings.Split(line, "|")
		length := f[1]
		if f[2] != "" {
			var n int
			fmt.Sscan(f[2], &n)
			length = fmt.Sprint(n - udpSize)
		}
		if f[0]+"|"+length != want[i] {
			t.Errorf("frame %d: tags and length %s|%s, want %s", i+1, f[0], length, want[i])
		}
		if f[3] != "1" && f[3] != "" || f[4] != "1" && f[5] != "1" || f[6] != "" {
			t.Errorf("frame %d: tshark finds a checksum wrong: %s", i+1, line)
		}
	}
}

func TestFramesCostNoMemory(t *testing.T) {
	from, to := netip.MustParseAddrPort("192.0.2.7:40001"), netip.MustParseAddrPort("198.51.100.4:9999")
	h := NewHeader(deception.TCP, MAC{}, MAC{}, Tags{7}, from, to)
	b, data := make([]byte, 0, 2048), make([]byte, h.Cut())
	segment := Segment{Flags: ACK, Data: data}
	if n := testing.AllocsPerRun(100, func() { b = h.TCP(b[:0], &segment); b = h.UDP(b[:0], 1, data) }); n != 0 {
		t.Errorf("%v allocations a frame", n)
	}
}

func BenchmarkTCP(b *testing.B) {
	from, to := netip.MustParseAddrPort("192.0.2.7:40001"), netip.MustParseAddrPort("198.51.100.4:9999")
	h := NewHeader(deception.TCP, MAC{}, MAC{}, Tags{7}, from, to)
	for _, n := range []int{0, 1460} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			buf, segment := make([]byte, 0, 2048), Segment{Flags: ACK, Data: make([]byte, n)}
			for b.Loop() {
				buf = h.TCP(buf[:0], &segment)
			}
		})
	}
}
