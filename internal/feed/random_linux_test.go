package feed

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"decoynet/deception"
)

// TestRandomFlows plays many flows in any order of reads, half-closes and ends, and
// has tshark put together what each side sent.
func TestRandomFlows(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	sensor, out := newSensor(t, httpRules), newPcapFile(t)
	f := New(Config{Lanes: 3})
	f.Add("file", out)
	const flows, firstPort = 150, 20_000
	var sent [flows][2]bytes.Buffer
	play := make([]*script, flows)
	var open []int
	for i := range flows {
		from, to := fmt.Sprintf("192.0.2.7:%d", firstPort+i), "198.51.100.4:9"
		if i%4 == 0 {
			from, to = fmt.Sprintf("[2001:db8::7]:%d", firstPort+i), "[2001:db8:1::4]:9"
		}
		play[i] = begin(f, session(deception.TCP, from, to))
		open = append(open, i)
	}
	var finished [flows][2]bool
	for len(open) > 0 {
		at := random.IntN(len(open))
		i, side := open[at], random.IntN(2)
		switch n := random.IntN(20); {
		case n < 14:
			if finished[i][side] {
				break
			}
			size := random.IntN(50)
			if random.IntN(4) == 0 {
				size = random.IntN(20_000)
			}
			data := make([]byte, size)
			for k := range data {
				data[k] = 'a' + byte(random.IntN(26)) // of any bytes tshark takes some for a protocol
			}
			sent[i][side].Write(data)
			play[i].data(side, string(data))
		case n < 16:
			finished[i][side] = true
			play[i].fin(side)
		case n < 18:
			play[i].end(deception.EndClientClosed + deception.EndReason(random.IntN(int(deception.EndDenied))))
			open = append(open[:at], open[at+1:]...)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	noComplaint(t, out.file.Name())
	events := sensor.read(t, out.file.Name())
	noEvents(t, events)
	for _, e := range events {
		if e.Type == "flow" && e.TCP["state"] != "closed" {
			t.Errorf("a flow is not over for Suricata: %s", e.Raw)
		}
	}
	var seen [flows][2]bytes.Buffer
	for _, line := range tshark(t, out.file.Name(), "tcp.len > 0", "tcp.srcport", "tcp.dstport", "tcp.payload") {
		parts := strings.Split(line, "\t")
		data, err := hex.DecodeString(parts[2])
		if err != nil {
			t.Fatal(err)
		}
		var a, b int
		fmt.Sscan(parts[0], &a)
		fmt.Sscan(parts[1], &b)
		if b == 9 {
			seen[a-firstPort][Client].Write(data)
		} else {
			seen[b-firstPort][Server].Write(data)
		}
	}
	for i := range flows {
		for side := range 2 {
			if !bytes.Equal(sent[i][side].Bytes(), seen[i][side].Bytes()) {
				t.Errorf("flow %d, side %d: %d bytes went in, %d came out, or others", i, side, sent[i][side].Len(), seen[i][side].Len())
			}
		}
	}
}
