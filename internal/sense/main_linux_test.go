package sense

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/wire"
	"decoynet/internal/lab/labtest"
)

// floodEnv turns the test binary into a sender that no scanner's pace bounds: its
// value is the link's name and the MAC address to send to.
const floodEnv = "SENSE_FLOOD"

func TestMain(m *testing.M) {
	if to := os.Getenv(floodEnv); to != "" {
		sent, err := flood(to)
		fmt.Println(sent, "frames sent")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	labtest.Main(m)
}

// flood sends a SYN to each address of 10.66.0.0/16, over and over for two
// seconds, each from another forged source.
func flood(to string) (sent int, err error) {
	var link string
	var mac net.HardwareAddr
	if _, err := fmt.Sscanf(to, "%s", &link); err != nil {
		return 0, err
	}
	if mac, err = net.ParseMAC(to[len(link)+1:]); err != nil {
		return 0, err
	}
	card, err := net.InterfaceByName(link)
	if err != nil {
		return 0, err
	}
	ns, err := netns.Current()
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	tap, err := wire.Open(wire.Config{NS: ns, Link: card.Index, Handle: func([]wire.Frame) {}, Kinds: wire.Only(wire.Advertisement)})
	if err != nil {
		return 0, err
	}
	defer tap.Close()
	frames := make([][]byte, 65_536)
	for i := range frames {
		frames[i] = forged(mac, card.HardwareAddr, i)
	}
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		at := sent % len(frames)
		n, _ := tap.SendMany(card.Index, frames[at:min(at+1024, len(frames))]) // a full queue is what is wanted
		sent += n
	}
	return sent, nil
}

// forged is the SYN to the nth address.
func forged(to, from net.HardwareAddr, n int) []byte {
	b := append(append(append([]byte{}, to...), from...), 0x08, 0x00)
	b = append(b, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 172, 16, byte(n>>8), byte(n), 10, 66, byte(n>>8), byte(n))
	sum := uint32(0)
	for i := 14; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[24:], ^uint16(sum+sum>>16))
	return append(b, 0xd4, 0x31, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xfa, 0xf0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
}
