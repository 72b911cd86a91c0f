package outbound

import (
	"strings"
	"testing"
)

func TestNew(t *testing.T) {
	for _, tt := range []struct{ proxy, via string }{
		{"", ""},
		{"http://proxy.example.com:3128", "proxy.example.com:3128"},
		{"http://proxy.example.com", "proxy.example.com:80"},
		{"https://proxy.example.com", "proxy.example.com:443"},
		{"https://proxy.example.com:8443/", "proxy.example.com:8443"},
		{"http://joe:secret@10.0.0.1:3128", "10.0.0.1:3128"},
		{"http://[2001:db8::1]:3128", "[2001:db8::1]:3128"},
		{"proxy:3128", "proxy:3128"},
		{"10.0.0.1:3128", "10.0.0.1:3128"},
	} {
		d, err := New(tt.proxy)
		if err != nil {
			t.Errorf("New(%q): %v", tt.proxy, err)
			continue
		}
		got := ""
		if d.proxy != nil {
			got = d.proxy.address
		}
		if got != tt.via {
			t.Errorf("New(%q) goes via %q, want %q", tt.proxy, got, tt.via)
		}
	}
	for _, tt := range []struct{ proxy, says string }{
		{"socks5://proxy:1080", `scheme "socks5"`},
		{"ftp://joe:secret@proxy", `scheme "ftp"`},
		{"http://", "names no host"},
		{"http://:3128", "names no host"},
		{"http://proxy:0", `port "0"`},
		{"http://proxy:65536", `port "65536"`},
		{"http://proxy:port", "bad proxy"},
		{"http://proxy:3128/path", "something follows"},
		{"http://proxy:3128?x=secret", "something follows"},
		{"http://joe:sec ret/secret@proxy:3128", "%40 for @"},
		{"http://joe:se%zzcret@proxy:3128", "%40 for @"},
		{"http://j%3Aoe:secret@proxy:3128", "holds a colon"},
		{"http://[2001:db8::1:3128", "bad proxy"},
		{"http://pro xy:3128", "bad proxy"},
		{"\x00", "bad proxy"},
	} {
		_, err := New(tt.proxy)
		if err == nil {
			t.Errorf("New(%q) takes it", tt.proxy)
			continue
		}
		mentions(t, tt.proxy, err.Error(), tt.says)
		if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "cret@") {
			t.Errorf("New(%q): the password is in %q", tt.proxy, err)
		}
	}
}

func TestEnvironment(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "REQUEST_METHOD"} {
		t.Setenv(name, "")
	}
	const proxy = "http://joe:secret@proxy:3128"
	t.Setenv("HTTP_PROXY", "http://for.plain.http:1")
	if got := FromEnvironment("https://hq.example.com:7443"); got != "" {
		t.Errorf("HTTP_PROXY is for plain HTTP alone; got %q", got)
	}
	t.Setenv("https_proxy", proxy)
	t.Setenv("NO_PROXY", "hq.example.com,.internal,10.0.0.0/8,192.0.2.1:7443")
	for target, want := range map[string]string{
		"https://hq2.example.com:7443": proxy,
		"https://hq2.example.com":      proxy,
		"hq2.example.com:7443":         proxy,
		"https://hq.example.com:7443/": "",
		"hq.example.com:7443":          "",
		"https://x.internal:7443":      "",
		"https://10.1.2.3:7443":        "",
		"https://11.1.2.3:7443":        proxy,
		"https://192.0.2.1:7443":       "",
		"https://192.0.2.1:7444":       proxy,
		"https://[2001:db8::1]:7443":   proxy,
		"https://localhost:7443":       "",
		"https://127.0.0.1:7443":       "",
		"[::1]:7443":                   "",
		"https://bad host":             "",
	} {
		if got := FromEnvironment(target); got != want {
			t.Errorf("%s goes by %q, want %q", target, got, want)
		}
	}
	// What is no proxy for New is not overlooked, or the node would go directly.
	t.Setenv("https_proxy", "socks5://joe:secret@proxy")
	if _, err := New(FromEnvironment("https://hq2.example.com:7443")); err == nil {
		t.Error("a proxy that cannot be used is left out")
	}
}
