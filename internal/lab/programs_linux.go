package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Nginx starts nginx, with an answer to every request that names the machine
// and the peer as nginx sees it. Its usual ports are 80, and 443 with TLS.
func Nginx(ctx context.Context, m *Machine, listen Listen) (*Server, error) {
	s, err := newServer(m, "nginx", parseNginx)
	if err != nil {
		return nil, err
	}
	if len(listen.Ports)+len(listen.TLS) == 0 {
		listen.Ports, listen.TLS = []uint16{80}, []uint16{443}
	}
	if err := selfSigned(s.dir, m.name); err != nil {
		return nil, fmt.Errorf("make the certificate of nginx: %w", err)
	}
	plain, err1 := sockets(listen.Addrs, listen.Ports...)
	secure, err2 := sockets(listen.Addrs, listen.TLS...)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	var listens strings.Builder
	for _, at := range plain {
		fmt.Fprintf(&listens, "\t\tlisten %s backlog=4096;\n", at)
	}
	for _, at := range secure {
		fmt.Fprintf(&listens, "\t\tlisten %s ssl;\n", at)
	}
	config := strings.NewReplacer("DIR", s.dir, "LISTEN", listens.String(), "MACHINE", m.name).Replace(nginxConfig)
	path := filepath.Join(s.dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		return nil, fmt.Errorf("configure nginx: %w", err)
	}
	return s.begin(ctx, &program{
		machine: m,
		argv:    []string{"nginx", "-p", s.dir, "-e", filepath.Join(s.dir, "error.log"), "-c", path},
		at:      slices.Concat(plain, secure),
	})
}

const nginxConfig = `daemon off;
user www-data;
worker_processes 1;
pid DIR/nginx.pid;
events { worker_connections 8192; }
http {
	log_format lab '$remote_addr $remote_port $server_addr $server_port "$request" $status';
	access_log DIR/nginx.log lab;
	client_body_temp_path DIR/body;
	proxy_temp_path DIR/proxy;
	fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi;
	scgi_temp_path DIR/scgi;
	ssl_certificate DIR/cert.pem;
	ssl_certificate_key DIR/key.pem;
	default_type text/plain;
	server {
LISTEN		location / {
			return 200 "machine MACHINE\nserver $server_addr $server_port\npeer $remote_addr $remote_port\n";
		}
	}
}
`

// parseNginx reads a line of our own log format.
func parseNginx(line string) (Contact, bool) {
	f := strings.Fields(line)
	if len(f) < 4 {
		return Contact{}, false
	}
	peer, ok1 := addrPort(f[0], f[1])
	local, ok2 := addrPort(f[2], f[3])
	return Contact{Peer: peer, Local: local}, ok1 && ok2
}

func selfSigned(dir, host string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: host},
		DNSNames:     []string{host},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name, kind string
		der        []byte
	}{{"cert.pem", "CERTIFICATE", cert}, {"key.pem", "PRIVATE KEY", der}} {
		text := pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der})
		if err := os.WriteFile(filepath.Join(dir, f.name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Redis starts a redis-server without protection and without persistence, whose
// log names every peer it accepts. Its usual port is 6379; it takes one only.
func Redis(ctx context.Context, m *Machine, listen Listen) (*Server, error) {
	s, err := newServer(m, "redis", parseRedis)
	if err != nil {
		return nil, err
	}
	ports := orUsual(listen.Ports, 6379)
	if len(ports) != 1 {
		return nil, fmt.Errorf("redis listens on one port, not on %v", ports)
	}
	argv := []string{
		"redis-server", "--port", fmt.Sprint(ports[0]), "--protected-mode", "no",
		"--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", s.dir,
		"--loglevel", "verbose", "--logfile", s.logFile, "--tcp-backlog", "4096", "--bind",
	}
	if len(listen.Addrs) == 0 {
		argv = append(argv, "*", "-::*") // - : where the kernel has that family
	}
	at, err := sockets(listen.Addrs, ports...)
	if err != nil {
		return nil, err
	}
	return s.begin(ctx, &program{machine: m, argv: append(argv, listen.Addrs...), at: at})
}

// parseRedis reads "1:M 01 Jan 2026 00:00:00.000 - Accepted 192.0.2.66:4711".
func parseRedis(line string) (Contact, bool) {
	_, peer, ok := strings.Cut(line, " - Accepted ")
	colon := strings.LastIndexByte(peer, ':')
	if !ok || colon < 0 {
		return Contact{}, false
	}
	ap, ok := addrPort(peer[:colon], peer[colon+1:])
	return Contact{Peer: ap}, ok
}

// SSHServer is an OpenSSH server with one account, which exists only in the
// machine.
type SSHServer struct {
	*Server
	User, Password string
	KeyFile        string // private key of the user
	KnownHosts     string // the server's key, for every address
}

// ClientArgs returns the arguments for ssh(1) to log in with the key at the
// address, checking the server's key and asking nothing; a command may follow.
func (s *SSHServer) ClientArgs(at netip.AddrPort) []string {
	return []string{
		"-F", "none", "-i", s.KeyFile, "-p", fmt.Sprint(at.Port()),
		"-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none",
		"-o", "UserKnownHostsFile=" + s.KnownHosts, "-o", "HostKeyAlias=lab", "-o", "StrictHostKeyChecking=yes",
		"-o", "ConnectTimeout=10", s.User + "@" + at.Addr().String(),
	}
}

// SSHD starts sshd with keys of its own. Its usual port is 22. One per machine:
// the account is added to the machine's user database.
func SSHD(ctx context.Context, m *Machine, listen Listen) (*SSHServer, error) {
	s, err := newServer(m, "sshd", parseSSHD)
	if err != nil {
		return nil, err
	}
	out := &SSHServer{Server: s, User: "demo", Password: "demo"}
	out.KeyFile, out.KnownHosts = filepath.Join(s.dir, "user_key"), filepath.Join(s.dir, "known_hosts")
	if err := out.prepare(ctx, listen); err != nil {
		return nil, fmt.Errorf("configure sshd: %w", err)
	}
	at, err := sockets(listen.Addrs, orUsual(listen.Ports, 22)...)
	if err != nil {
		return nil, err
	}
	if _, err := s.begin(ctx, &program{
		machine: m,
		// sshd starts itself anew for each connection and insists on a full path.
		argv: []string{"/usr/sbin/sshd", "-D", "-f", filepath.Join(s.dir, "sshd_config"), "-E", s.logFile},
		at:   at,
	}); err != nil {
		return nil, err
	}
	return out, nil
}

func (s *SSHServer) prepare(ctx context.Context, listen Listen) error {
	hostKey := filepath.Join(s.dir, "host_key")
	for _, key := range []string{hostKey, s.KeyFile} {
		if _, err := s.machine.Run(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", key); err != nil {
			return err
		}
	}
	public, err := os.ReadFile(hostKey + ".pub")
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.KnownHosts, append([]byte("lab "), public...), 0o644); err != nil {
		return err
	}
	config := strings.NewReplacer("DIR", s.dir).Replace(sshdConfig)
	for _, port := range orUsual(listen.Ports, 22) {
		config += fmt.Sprintf("Port %d\n", port)
	}
	for _, a := range listen.Addrs {
		config += "ListenAddress " + a + "\n"
	}
	if err := os.WriteFile(filepath.Join(s.dir, "sshd_config"), []byte(config), 0o644); err != nil {
		return err
	}
	return s.machine.addUser(s.User, demoHash, s.dir)
}

// MaxStartups: more log-ins at once than any test makes, none refused at random.
const sshdConfig = `HostKey DIR/host_key
AuthorizedKeysFile DIR/user_key.pub
PidFile none
LogLevel VERBOSE
UsePAM no
UseDNS no
StrictModes no
PermitRootLogin no
PasswordAuthentication yes
MaxStartups 4096
`

// parseSSHD reads "Connection from 192.0.2.66 port 4711 on 10.1.0.4 port 22 ...".
func parseSSHD(line string) (Contact, bool) {
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "Connection" || f[1] != "from" || f[3] != "port" || f[5] != "on" {
		return Contact{}, false
	}
	peer, ok1 := addrPort(f[2], f[4])
	local, ok2 := addrPort(f[6], f[8])
	return Contact{Peer: peer, Local: local}, ok1 && ok2
}

// The account's uid is the last of Debian's range for people, of which a host
// is unlikely to have that many; the hash is sha512-crypt of "demo".
const (
	demoUID  = 59999
	demoHash = "$6$decoynet$5JMIzpQtrqQRtVDZhUHzWAuclQ7xYbMitgErN5LEExtv8bg9jA7CM9mQ8ysbzu0b3t65ndstjsyr.T1U0RRNc/"
)

// addUser adds an account to the user database that the machine sees; the
// host's files stay as they are.
func (m *Machine) addUser(name, hash, dir string) error {
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		return err
	}
	if err := os.Chown(home, demoUID, demoUID); err != nil {
		return err
	}
	return m.inside(func() error {
		return errors.Join(
			extend("/etc/passwd", filepath.Join(dir, "passwd"), fmt.Sprintf("%s:x:%d:%d::%s:/bin/sh\n", name, demoUID, demoUID, home), 0o644),
			extend("/etc/group", filepath.Join(dir, "group"), fmt.Sprintf("%s:x:%d:\n", name, demoUID), 0o644),
			extend("/etc/shadow", filepath.Join(dir, "shadow"), fmt.Sprintf("%s:%s:20000::::::\n", name, hash), 0o600),
		)
	})
}

// extend mounts a copy of a file, with a line added, over the file.
func extend(file, copied, line string, mode os.FileMode) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := os.WriteFile(copied, append(text, line...), mode); err != nil {
		return err
	}
	if err := unix.Mount(copied, file, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount over %s: %w", file, err)
	}
	return nil
}
