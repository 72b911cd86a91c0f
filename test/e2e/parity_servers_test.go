//go:build linux

package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"decoynet/internal/lab"
)

// serversAt is where the servers listen that the office lacks.
const serversAt = "10.1.0.6"

// parityServer is a server of Debian's in the foreground, with a configuration of
// the test's own. In configuration and command lines DIR is its folder, AT its
// address and CERT a folder with a certificate.
type parityServer struct {
	name    string
	files   map[string]string // name in the folder: content
	prepare []string          // shell commands, before it starts
	run     string            // what becomes the server
	answers string            // succeeds as soon as the server answers
	end     syscall.Signal    // ends it, unless the end of the lab is good enough
}

var parityServers = []parityServer{
	{
		name: "smbd",
		files: map[string]string{"smb.conf": `[global]
server role = standalone server
interfaces = AT
bind interfaces only = yes
smb ports = 445
disable netbios = yes
load printers = no
server min protocol = NT1
passdb backend = tdbsam
private dir = DIR/private
lock directory = DIR/lock
state directory = DIR/state
cache directory = DIR/cache
pid directory = DIR/pid
ncalrpc dir = DIR/ncalrpc
log file = DIR/smbd.log
[files]
path = DIR/files
read only = no
`},
		prepare: []string{
			"mkdir private lock state cache pid ncalrpc files",
			"seq 2000 >files/numbers.txt && chmod -R a+rwX files",
			`printf 'demo\ndemo\n' | smbpasswd -c DIR/smb.conf -s -a demo`,
		},
		run:     "smbd --foreground --no-process-group -s DIR/smb.conf",
		answers: "smbclient -s /dev/null //AT/files -U demo%demo -c ls",
	},
	{
		name: "vsftpd",
		files: map[string]string{"vsftpd.conf": `listen=YES
listen_ipv6=NO
listen_address=AT
background=NO
anonymous_enable=YES
anon_root=DIR/root
anon_upload_enable=YES
anon_other_write_enable=YES
anon_umask=022
write_enable=YES
secure_chroot_dir=DIR/empty
pasv_min_port=40000
pasv_max_port=40009
pasv_address=192.0.2.151
seccomp_sandbox=NO
`},
		prepare: []string{
			"mkdir -p root/incoming empty && chown ftp root/incoming",
			"seq 2000 >root/numbers.txt",
		},
		run:     "vsftpd DIR/vsftpd.conf",
		answers: "curl -sf --ftp-method nocwd ftp://AT/ --list-only -o /dev/null",
	},
	{
		name: "postgres",
		prepare: []string{
			"echo demo >password && chown postgres . password",
			setprivPostgres + "PROGRAMS/initdb -D DIR/data -U demo --pwfile DIR/password -A scram-sha-256 -E UTF8 --no-locale --no-sync --no-instructions",
			"echo 'host all all 0.0.0.0/0 scram-sha-256' >>data/pg_hba.conf",
		},
		run: setprivPostgres + "PROGRAMS/postgres -D DIR/data -k DIR -c listen_addresses=AT -c fsync=off" +
			" -c shared_buffers=16MB -c autovacuum=off -c dynamic_shared_memory_type=mmap",
		answers: `psql 'host=AT user=demo password=demo dbname=postgres' -c 'SELECT 1'`,
		end:     syscall.SIGINT, // or its shared memory stays (System V's, which no namespace of the lab's holds)
	},
	{
		name: "nginx",
		files: map[string]string{"nginx.conf": `daemon off;
worker_processes 1;
pid DIR/nginx.pid;
events {}
http {
	access_log off;
	client_body_temp_path DIR/body;
	proxy_temp_path DIR/proxy;
	fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi;
	scgi_temp_path DIR/scgi;
	ssl_protocols TLSv1.2 TLSv1.3;
	ssl_certificate CERT/cert.pem;
	ssl_certificate_key CERT/key.pem;
	server {
		listen AT:8081 http2;
		listen AT:8443 ssl http2;
		root DIR/root;
	}
}
`},
		prepare: []string{
			"mkdir -p root/etc && echo peer none >root/index.html && cp /etc/passwd root/etc/",
			"seq 2000 >root/numbers.txt",
		},
		run:     "nginx -p DIR -e DIR/error.log -c DIR/nginx.conf",
		answers: "curl -sf --http2-prior-knowledge http://AT:8081/",
	},
}

// PostgreSQL refuses to run as root.
const setprivPostgres = "setpriv --reuid=postgres --regid=postgres --clear-groups --reset-env "

// startServers starts them all, and returns when they answer.
func startServers(t *testing.T, o *office) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	_, err := o.Linux.Run(ctx, "ip", "address", "add", serversAt+"/24", "dev", "eth0")
	check(t, err)
	for _, m := range []*lab.Machine{o.Linux, o.Intruder} {
		withoutNames(ctx, t, m)
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	check(t, err)
	if len(found) == 0 {
		t.Fatal("PostgreSQL is not installed")
	}
	ended := make([]func(), len(parityServers))
	t.Cleanup(func() {
		for _, end := range ended {
			if end != nil {
				end()
			}
		}
	})
	var group errgroup.Group
	for i, s := range parityServers {
		// Servers drop privileges, and must reach their folders all the same.
		dir := filepath.Join(o.Linux.Dir(), "parity-"+s.name)
		check(t, os.Mkdir(dir, 0o755))
		fill := strings.NewReplacer("DIR", dir, "AT", serversAt, "CERT", o.Web.Dir(), "PROGRAMS", found[len(found)-1])
		group.Go(func() (err error) {
			ended[i], err = s.start(ctx, t, o.Linux, dir, fill.Replace)
			return err
		})
	}
	check(t, group.Wait())
}

// withoutNames keeps a machine's programs from asking DNS servers that they do not
// reach, as Samba's do for the names of hosts: they would wait for the answers.
func withoutNames(ctx context.Context, t *testing.T, m *lab.Machine) {
	t.Helper()
	path := filepath.Join(m.Dir(), "nsswitch.conf")
	check(t, os.WriteFile(path, []byte("passwd: files\ngroup: files\nshadow: files\nhosts: files\n"), 0o644))
	_, err := m.Run(ctx, "mount", "--bind", path, "/etc/nsswitch.conf")
	check(t, err)
}

// start makes the server's folder and starts it; the function ends it.
func (s *parityServer) start(ctx context.Context, t *testing.T, m *lab.Machine, dir string, fill func(string) string) (func(), error) {
	for name, text := range s.files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(fill(text)), 0o644); err != nil {
			return nil, err
		}
	}
	for _, p := range s.prepare {
		if _, err := m.Run(ctx, "sh", "-ec", "cd "+dir+"; "+fill(p)); err != nil {
			return nil, fmt.Errorf("prepare %s: %w", s.name, err)
		}
	}
	process, err := m.Start("sh", "-c", "exec "+fill(s.run))
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.name, err)
	}
	end := func() {
		if s.end == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := process.Signal(s.end); err != nil {
			t.Errorf("end %s: %v", s.name, err)
		}
		if err := process.Wait(ctx); err != nil {
			t.Errorf("%s ended: %v", s.name, err)
		}
	}
	return end, lab.Eventually(ctx, 60*time.Second, func() error {
		select {
		case <-process.Done():
			return fmt.Errorf("%s ended: %s", s.name, process.Log())
		default:
		}
		_, err := m.Run(ctx, "timeout", "20", "sh", "-c", fill(s.answers))
		return err
	})
}

// answerer says what a server answers to a datagram.
type answerer func(datagram []byte) [][]byte

// datagramServers are all of them, by port.
func datagramServers() map[uint16]answerer {
	servers := map[uint16]answerer{53: answerName, 69: answerFile}
	for _, d := range datagrams {
		servers[d.port] = d.answers
	}
	return servers
}

// answerDatagrams serves a port of UDP until the test ends. A check of the
// service's health is a datagram too, and gets what the answerer says.
func answerDatagrams(t *testing.T, m *lab.Machine, port uint16, answer answerer) {
	t.Helper()
	conn, err := m.ListenPacket(t.Context(), "udp", net.JoinHostPort("10.1.0.5", strconv.Itoa(int(port))))
	check(t, err)
	var group sync.WaitGroup
	group.Go(func() {
		b := make([]byte, 1<<16)
		for {
			n, peer, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			for _, a := range answer(b[:n]) {
				_, _ = conn.WriteTo(a, peer) // as with any datagram, it may be lost
			}
		}
	})
	t.Cleanup(func() {
		check(t, conn.Close())
		group.Wait()
	})
}

// answerName answers queries for addresses: one for A, none for all others.
func answerName(query []byte) [][]byte {
	const header = 12
	if len(query) < header+5 || query[2]&0x80 != 0 {
		return nil
	}
	end := header // of the question
	for end < len(query) && query[end] != 0 {
		end += 1 + int(query[end])
	}
	if end += 5; end > len(query) {
		return nil
	}
	answer := slices.Clone(query[:end])
	copy(answer[2:], "\x85\x80\x00\x01\x00\x00\x00\x00\x00\x00") // an authoritative answer to one question
	if query[end-4] == 0 && query[end-3] == 1 {
		answer[7] = 1
		answer = append(answer, "\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x01"...)
	}
	return [][]byte{answer}
}

// answerFile answers every request for a file with the same one (RFC 1350), from
// the port that was asked: a relay cannot know of another.
func answerFile(request []byte) [][]byte {
	if len(request) < 4 || request[0] != 0 || request[1] != 1 {
		return nil
	}
	return [][]byte{[]byte("\x00\x03\x00\x01hostname decoy\n")}
}

// answers returns what the server of a dialogue by datagrams answers.
func (d dialogue) answers(datagram []byte) (out [][]byte) {
	said := slices.Index(d.turns, ">"+string(datagram))
	if said < 0 {
		return nil
	}
	for _, turn := range d.turns[said+1:] {
		if turn[0] == '>' {
			break
		}
		out = append(out, []byte(turn[1:]))
	}
	return out
}
