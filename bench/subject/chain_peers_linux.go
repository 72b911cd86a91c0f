package subject

import (
	"context"
	"net/netip"
	"strconv"
	"text/template"

	"decoynet/bench/certs"
	"decoynet/internal/pki"
)

// What the peers of a chain add to a port's number for the doors behind the one
// that the intruder sees: of the gateway machine, and of the last process there.
// All lie at addresses of their own machines, never at the wildcard, which would
// block transparent binds to these numbers.
const (
	innerDoors = 4400
	lastDoors  = 5400
)

type chainConfig struct {
	peerConfig
	FrontAddr, GatewayAddr string
	FrontDir, GatewayDir   string
	Inner, Last            map[int]int // by the port that the intruder sees
	Next                   string      // where the inner HAProxy leads to
	TLS, MMProxy           bool
}

func chainConfigOf(s *Site) chainConfig {
	c := chainConfig{
		peerConfig: configOf(s), FrontAddr: s.FrontAddr.String(), GatewayAddr: s.GatewayAddr.String(),
		FrontDir: s.Front.Dir(), GatewayDir: s.Gateway.Dir(), Inner: map[int]int{}, Last: map[int]int{},
	}
	for _, p := range peerPorts {
		c.Inner[p], c.Last[p] = innerDoors+p, lastDoors+p
	}
	return c
}

// chainDefaults: as in haproxyConfig. Sessions of TLS are resumed, so that a new
// connection costs no signature. Buffers are large: those of 16 or 32 KB took
// more CPU for many streams.
const chainDefaults = `global
	nbthread 2
	maxconn 8000
	maxpipes 1500
	tune.pipesize 1048576
	tune.bufsize 65536
	ssl-default-bind-options ssl-min-ver TLSv1.3
	ssl-default-server-options ssl-min-ver TLSv1.3
	ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
	ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256

defaults
	mode tcp
	retries 3
	backlog 4096
	timeout connect 5s
	timeout client 10m
	timeout server 10m
`

// tlsFront takes the intruder's connections and brings each over a TLS
// connection of its own, both ends certified as decoynet's are.
var tlsFront = template.Must(template.New("front").Parse(chainDefaults + `{{range .Ports}}
listen p{{.Number}}
	bind 0.0.0.0:{{.Number}}
	server next {{$.GatewayAddr}}:{{index $.Inner .Number}} ssl crt {{$.FrontDir}}/bundle.pem ca-file {{$.FrontDir}}/ca.pem verify required send-proxy-v2
{{end}}`))

// tlsGateway takes them and leads on: to go-mmproxy by PROXY protocol, or to the
// service with the intruder's address.
var tlsGateway = template.Must(template.New("gateway").Parse(chainDefaults + `{{range .Ports}}
listen p{{.Number}}
	bind {{$.GatewayAddr}}:{{index $.Inner .Number}} ssl crt {{$.GatewayDir}}/bundle.pem ca-file {{$.GatewayDir}}/ca.pem verify required accept-proxy
{{- if $.MMProxy}}
	server last 127.0.0.1:{{index $.Last .Number}} send-proxy-v2
{{- else}}
	source 0.0.0.0 usesrc client
	server service {{$.Service}}:{{.Number}}
{{- end}}
{{end}}`))

// HAProxyTLS is two HAProxies with TLS and the PROXY protocol between them, and
// go-mmproxy, which dials the service with the intruder's address.
func HAProxyTLS() Subject { return haproxyTLS("haproxy-tls", true) }

// HAProxyTLSDirect is the same without go-mmproxy: the second HAProxy dials the
// service by itself.
func HAProxyTLSDirect() Subject { return haproxyTLS("haproxy-direct", false) }

func haproxyTLS(name string, mmproxy bool) Subject {
	return Subject{
		Name: name, Layout: Layout{Front: true, Own: true},
		Prepare: func(*Site) Setup { return Setup{Front: []string{reuse}, Gateway: transparentSource()} },
		Run: func(_ context.Context, s *Site, start Start) error {
			c := chainConfigOf(s)
			c.MMProxy = mmproxy
			ca, err := pki.NewCA()
			if err != nil {
				return err
			}
			for _, m := range s.chained() {
				if err := certs.Issue(ca, m.node, m.machine.Dir()); err != nil {
					return err
				}
			}
			if mmproxy {
				if err := startMMProxies(s, netip.AddrFrom4([4]byte{127, 0, 0, 1}), start); err != nil {
					return err
				}
			}
			if err := startHAProxy(s.Gateway, tlsGateway, c, start); err != nil {
				return err
			}
			return startHAProxy(s.Front, tlsFront, c, start)
		},
	}
}

// startMMProxies starts the package's go-mmproxy on the gateway machine, one
// process for each port, as it knows one service only. Its way back is the
// README's, by the zone's link instead of the loopback, as the service is no
// process of the same machine.
func startMMProxies(s *Site, at netip.Addr, start Start) error {
	for _, p := range peerPorts {
		door := netip.AddrPortFrom(at, uint16(lastDoors+p))
		service := netip.AddrPortFrom(s.ServiceAddr, uint16(p))
		if _, err := start(s.Gateway, "go-mmproxy", "-l", door.String(), "-4", service.String(), "-listeners", strconv.Itoa(mmproxyListeners)); err != nil {
			return err
		}
	}
	return nil
}

// mmproxyListeners is one for each core.
const mmproxyListeners = 2

// hopFront has the decoys and brings each connection on by the PROXY protocol.
var hopFront = template.Must(template.New("front").Parse(chainDefaults + `{{range .Ports}}
listen p{{.Number}}
	bind 127.0.0.1:{{.Number}} transparent
	server next {{$.GatewayAddr}}:{{index $.Last .Number}} send-proxy-v2
{{- if .Streams}}
	option splice-request
	option splice-response
{{- else}}
	option splice-auto
{{- end}}
{{end}}`))

// HAProxyMMProxy is HAProxy with decoys of its own, and go-mmproxy on the other
// machine.
func HAProxyMMProxy() Subject {
	return Subject{
		Name: "haproxy-mmproxy", Layout: Layout{Front: true},
		Prepare: func(s *Site) Setup {
			front := []string{reuse, "sysctl -qw net.ipv4.conf.all.rp_filter=0", ownDecoys(s), tproxy(s)}
			return Setup{Front: front, Gateway: transparentSource()}
		},
		Run: func(_ context.Context, s *Site, start Start) error {
			if err := startMMProxies(s, s.GatewayAddr, start); err != nil {
				return err
			}
			return startHAProxy(s.Front, hopFront, chainConfigOf(s), start)
		},
	}
}
