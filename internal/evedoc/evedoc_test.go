package evedoc

import (
	"strings"
	"testing"
	"unicode/utf8"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
)

// documents are as Suricata 7.0.10 writes them, without what all of them have.
var documents = map[string]struct {
	kind, document string
	says           deception.Analysis
	line           string
}{
	"http": {
		"http", `{"http":{"hostname":"192.0.2.7","url":"/a?b=c","http_user_agent":"sqlmap/1.7","http_method":"GET","protocol":"HTTP/1.1","status":404,"length":153}}`,
		deception.Analysis{UserAgent: "sqlmap/1.7", ServerName: "192.0.2.7"},
		`GET 192.0.2.7/a?b=c HTTP/1.1 status 404 agent "sqlmap/1.7"`,
	},
	"tls": {
		"tls", `{"tls":{"subject":"CN=x","sni":"intranet","version":"TLS 1.2","ja3":{"hash":"e7d7","string":"771,1"},"ja4":"t12d"}}`,
		deception.Analysis{JA3: "e7d7", JA4: "t12d", ServerName: "intranet"},
		`TLS 1.2 to intranet ja4 t12d ja3 e7d7 subject "CN=x"`,
	},
	"quic": {
		"quic", `{"quic":{"version":"1","sni":"intranet","ua":"Chrome","ja4":"q13d","extensions":[{"name":"sni"}]}}`,
		deception.Analysis{UserAgent: "Chrome", JA4: "q13d", ServerName: "intranet"},
		"to intranet agent Chrome ja4 q13d",
	},
	"ssh": {
		"ssh", `{"ssh":{"client":{"proto_version":"2.0","software_version":"libssh2_1.10.0","hassh":{"hash":"ec73","string":"x"}},"server":{"software_version":"OpenSSH_9.2p1"}}}`,
		deception.Analysis{SSH: "libssh2_1.10.0", HASSH: "ec73"},
		"client libssh2_1.10.0 hassh ec73 server OpenSSH_9.2p1",
	},
	"smb": {
		"smb", `{"smb":{"id":3,"dialect":"3.11","command":"SMB2_COMMAND_SESSION_SETUP","status":"STATUS_LOGON_FAILURE","ntlmssp":{"domain":"WG","user":"bob","host":"PC"}}}`,
		deception.Analysis{User: "bob"},
		`SESSION_SETUP 3.11 user "WG\bob" from PC STATUS_LOGON_FAILURE`,
	},
	"ftp": {
		"ftp", `{"ftp":{"command":"USER","command_data":"anonymous","completion_code":["331"],"reply":["Password?"]}}`,
		deception.Analysis{User: "anonymous"},
		"USER anonymous -> 331 Password?",
	},
	"other command of ftp": {
		"ftp", `{"ftp":{"command":"RETR","command_data":"secret.txt"}}`, deception.Analysis{}, "RETR secret.txt",
	},
	"krb5": {
		"krb5", `{"krb5":{"msg_type":"KRB_AS_REQ","cname":"alice","realm":"R","sname":"krbtgt"}}`,
		deception.Analysis{User: "alice"},
		"KRB_AS_REQ client alice service krbtgt realm R",
	},
	"rdp": {
		"rdp", `{"rdp":{"tx_id":0,"event_type":"initial_request","cookie":"A70067"}}`, deception.Analysis{User: "A70067"}, `initial_request cookie "A70067"`,
	},
	"pgsql": {
		"pgsql", `{"pgsql":{"tx_id":1,"request":{"startup_parameters":{"user":"postgres","optional_parameters":[{"database":"db"}]}}}}`,
		deception.Analysis{User: "postgres"},
		`user "postgres"`,
	},
	"dns":      {"dns", `{"dns":{"version":2,"type":"query","rrname":"a.test","rrtype":"A"}}`, deception.Analysis{}, "query A a.test"},
	"fileinfo": {"fileinfo", `{"fileinfo":{"filename":"/x","size":7,"state":"CLOSED","sha256":"ab"}}`, deception.Analysis{}, "/x 7 bytes CLOSED sha256 ab"},
	"anomaly":  {"anomaly", `{"anomaly":{"type":"stream","event":"stream.reassembly_overlap"}}`, deception.Analysis{}, "stream stream.reassembly_overlap"},
	"flow":     {"flow", `{"flow":{"pkts_toserver":5,"pkts_toclient":3,"state":"closed","reason":"timeout"}}`, deception.Analysis{}, "closed by timeout packets 5/3"},
	"alert":    {"alert", `{"alert":{},"http":{"http_user_agent":"curl"},"tls":{"sni":"s"}}`, deception.Analysis{UserAgent: "curl", ServerName: "s"}, "{}"},
	"unheard":  {"modbus", `{"modbus":{"id":1},"x":2}`, deception.Analysis{}, `{"id":1}`},
	"shapes":   {"http", `{"tls":[1],"http":{"status":"odd","hostname":7,"http_user_agent":"curl"}}`, deception.Analysis{UserAgent: "curl"}, `agent "curl"`},
	"no JSON":  {"http", `{"http":{"http_user_agent":"cu`, deception.Analysis{}, ""},
	"list":     {"http", `[]`, deception.Analysis{}, ""},
	"nothing":  {"x", ``, deception.Analysis{}, ""},
}

func TestDocuments(t *testing.T) {
	for name, c := range documents {
		var says deception.Analysis
		Analyse(c.kind, []byte(c.document), &says)
		if diff := cmp.Diff(c.says, says); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if line := Line(c.kind, []byte(c.document)); line != c.line {
			t.Errorf("%s: %q, want %q", name, line, c.line)
		}
	}
}

// The first record that says something is believed.
func TestTheFirstCounts(t *testing.T) {
	says := deception.Analysis{UserAgent: "first"}
	Analyse("http", []byte(`{"http":{"hostname":"h","http_user_agent":"second"}}`), &says)
	if says.UserAgent != "first" || says.ServerName != "h" {
		t.Errorf("%+v", says)
	}
}

// Nothing that an intruder makes Suricata say is too much.
func FuzzDocument(f *testing.F) {
	for _, c := range documents {
		f.Add(c.kind, []byte(c.document))
	}
	f.Add("http", []byte(`{"http":{"http_user_agent":"`+strings.Repeat("é", 500)+`"}}`))
	f.Fuzz(func(t *testing.T, kind string, document []byte) {
		var says deception.Analysis
		Analyse(kind, document, &says)
		for _, text := range says.Texts() {
			if len(*text) > maxText || !utf8.ValidString(*text) {
				t.Errorf("%q", *text)
			}
		}
		Line(kind, document)
	})
}
