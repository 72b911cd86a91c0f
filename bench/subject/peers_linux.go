package subject

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"decoynet/bench/load"
	"decoynet/internal/lab"
)

// Routed is the yardstick of what the machine can do: the gateway forwards to
// decoy addresses that the service's own machine holds.
func Routed() Subject {
	return Subject{
		Name: "routed",
		Prepare: func(s *Site) Setup {
			gateway := []string{
				"sysctl -qw net.ipv4.ip_forward=1",
				fmt.Sprintf("ip route add %s via %s", s.DecoyPrefix, s.ServiceAddr),
				// The intruder takes the decoys for neighbours, as it does
				// everywhere else, so the gateway answers ARP for them.
				fmt.Sprintf("sysctl -qw net.ipv4.conf.%s.proxy_arp=1 net.ipv4.neigh.%s.proxy_delay=0", uplink, uplink),
			}
			return Setup{Gateway: gateway, Service: []string{ownDecoys(s)}}
		},
	}
}

// The peers' ports equal the service's: they lie below the intruder's ephemeral
// ports, so the wildcard listeners are in no transparent bind's way.
var peerPorts = load.Ports

// reuse tunes a machine as its administrator would: a source port that comes
// round may replace a connection that closed more than a second ago.
const reuse = "sysctl -qw net.ipv4.tcp_tw_reuse=1"

// ownDecoys returns the line that makes a machine own the decoys.
func ownDecoys(s *Site) string { return fmt.Sprintf("ip route add local %s dev lo", s.DecoyPrefix) }

// transparentSource returns the lines that let a gateway machine dial the
// service with the intruders' addresses: the service's replies are delivered to
// transparent sockets.
func transparentSource() []string {
	return []string{
		reuse,
		"sysctl -qw net.ipv4.conf.all.rp_filter=0",
		fmt.Sprintf("sysctl -qw net.ipv4.conf.%s.rp_filter=0", zoneLink),
		fmt.Sprintf("ip rule add iif %s lookup 100", zoneLink),
		"ip route add local default dev lo table 100",
	}
}

// tproxy returns the line that steers new connections to a local listener. Only
// SYNs are looked at in earnest; all else finds its socket by itself.
func tproxy(s *Site) string {
	return fmt.Sprintf(`nft -f - <<'END'
table ip steer {
	chain prerouting {
		type filter hook prerouting priority mangle
		tcp flags & (syn | ack) == syn iifname %s ip daddr %s tcp dport %d-%d tproxy to 127.0.0.1 accept
	}
}
END`, uplink, s.DecoyPrefix, peerPorts[0], peerPorts[len(peerPorts)-1])
}

func steered(s *Site) Setup {
	return Setup{Gateway: append(transparentSource(), ownDecoys(s), tproxy(s))}
}

type peerConfig struct {
	Dir     string
	Service string
	Ports   []peerPort
	Plain   bool // HAProxy as it comes: no forced splicing, pipes as large as the system's
}

type peerPort struct {
	Number  int
	Streams bool // carries bulk data, not short connections
}

func configOf(s *Site) peerConfig {
	c := peerConfig{Dir: s.Gateway.Dir(), Service: s.ServiceAddr.String()}
	for _, p := range peerPorts {
		c.Ports = append(c.Ports, peerPort{Number: p, Streams: p == load.PortSource || p == load.PortSink})
	}
	return c
}

// writeConfig fills in a template in a machine's folder and returns the file's
// path.
func writeConfig(m *lab.Machine, name string, t *template.Template, data any) (string, error) {
	var text strings.Builder
	if err := t.Execute(&text, data); err != nil {
		return "", fmt.Errorf("write %s: %w", name, err)
	}
	path := filepath.Join(m.Dir(), name)
	if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
		return "", fmt.Errorf("write %s: %w", name, err)
	}
	return path, nil
}

// haproxyConfig: two threads for two cores, no logs, no health checks, and
// limits and timeouts that no load here comes near. Splicing is left to HAProxy
// on the ports of short connections, where it pays nothing, and forced on those
// of bulk data, where its own guess hardly ever splices; pipes of 1 MB instead
// of 64 KB make those half as fast again.
var haproxyConfig = template.Must(template.New("haproxy").Parse(`global
	nbthread 2
	maxconn 8000
	maxpipes 1500
{{- if not .Plain}}
	tune.pipesize 1048576
{{- end}}

defaults
	mode tcp
	retries 3
	backlog 4096
	timeout connect 5s
	timeout client 10m
	timeout server 10m
{{range .Ports}}
listen p{{.Number}}
	bind 127.0.0.1:{{.Number}} transparent
	source 0.0.0.0 usesrc client
	server service {{$.Service}}:{{.Number}}
{{- if and .Streams (not $.Plain)}}
	option splice-request
	option splice-response
{{- else}}
	option splice-auto
{{- end}}
{{end}}`))

// HAProxy is Debian's HAProxy with TPROXY in front, tuned for what is measured.
func HAProxy() Subject { return haproxy("haproxy", false) }

// HAProxyAuto is the same with "option splice-auto" for everything and nothing
// else said about splicing, as its manual recommends and most will run it.
func HAProxyAuto() Subject { return haproxy("haproxy-auto", true) }

func haproxy(name string, plain bool) Subject {
	return Subject{
		Name:    name,
		Prepare: steered,
		Run: func(_ context.Context, s *Site, start Start) error {
			c := configOf(s)
			c.Plain = plain
			return startHAProxy(s.Gateway, haproxyConfig, c, start)
		},
	}
}

func startHAProxy(m *lab.Machine, t *template.Template, data any, start Start) error {
	path, err := writeConfig(m, "haproxy.cfg", t, data)
	if err == nil {
		_, err = start(m, "haproxy", "-db", "-f", path)
	}
	return err
}

// nginxConfig: the same for nginx; its workers keep CAP_NET_RAW as root's.
var nginxConfig = template.Must(template.New("nginx").Parse(`load_module /usr/lib/nginx/modules/ngx_stream_module.so;
user root;
daemon off;
pid {{.Dir}}/nginx.pid;
error_log stderr error;
worker_processes 2;
worker_rlimit_nofile 20000;
events {
	worker_connections 9000;
	multi_accept on;
}
stream {
	access_log off;
	proxy_connect_timeout 5s;
	proxy_timeout 10m;
	proxy_half_close on;
{{- range .Ports}}
	server {
		listen 0.0.0.0:{{.Number}} reuseport backlog=4096;
		proxy_pass {{$.Service}}:{{.Number}};
		proxy_bind $remote_addr:$remote_port transparent;
		proxy_buffer_size {{if .Streams}}64k{{else}}16k{{end}};
	}
{{- end}}
}
`))

// Nginx is Debian's nginx with its stream module. Its listeners cannot be made
// transparent, which TPROXY asks of them, so they take the decoys by wildcard.
func Nginx() Subject {
	return Subject{
		Name: "nginx",
		Prepare: func(s *Site) Setup {
			// It binds without SO_REUSEADDR, so a source port that comes round
			// within the minute of TIME_WAIT would be refused: do without.
			return Setup{Gateway: append(transparentSource(), ownDecoys(s), "sysctl -qw net.ipv4.tcp_max_tw_buckets=0")}
		},
		Run: func(_ context.Context, s *Site, start Start) error {
			path, err := writeConfig(s.Gateway, "nginx.conf", nginxConfig, configOf(s))
			if err == nil {
				_, err = start(s.Gateway, "nginx", "-e", "stderr", "-c", path)
			}
			return err
		},
	}
}

// SNAT is the naive way: a plain relay that adds an iptables rule for every
// connection.
func SNAT() Subject {
	return Subject{
		Name:     "snat-rule",
		Parallel: 8,
		Prepare:  func(s *Site) Setup { return Setup{Gateway: []string{ownDecoys(s)}} },
		Run: func(_ context.Context, s *Site, start Start) error {
			_, err := start(s.Gateway, s.network.self, "snat", s.ZoneGateway.String(), s.ServiceAddr.String())
			return err
		},
	}
}
