//go:build !unix

package agent

import (
	"decoynet/internal/pump"
)

// udpReader reads the socket of a udpPart.
type udpReader struct {
	data []byte
	oob  [controlSize]byte
}

func (p *udpPart) open() error {
	p.data = make([]byte, pump.DatagramSize)
	return nil
}

// receive waits for the next datagram.
func (p *udpPart) receive() (datagram, error) {
	if !p.at.Addr().IsUnspecified() {
		n, source, err := p.conn.ReadFromUDPAddrPort(p.data)
		return datagram{data: p.data[:n], source: source, to: p.at.Addr()}, err
	}
	n, oobn, _, source, err := p.conn.ReadMsgUDPAddrPort(p.data, p.oob[:])
	if err != nil {
		return datagram{}, err
	}
	d := datagram{data: p.data[:n], source: source}
	if !p.readControl(&d, p.oob[:oobn]) {
		return datagram{}, errNoDestination
	}
	return d, nil
}
