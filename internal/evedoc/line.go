package evedoc

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"

	"decoynet/deception"
)

// Line says in one line, for people, what the document of a kind holds. It may
// hold whatever an intruder chose: who shows it makes it safe. A kind that is not
// known by name is shown as its object is.
func Line(kind string, document []byte) string {
	var e event
	_ = json.Unmarshal(document, &e)
	if say, ok := lines[kind]; ok {
		return say(&e)
	}
	var objects map[string]json.RawMessage
	if json.Unmarshal(document, &objects) != nil {
		return ""
	}
	return string(objects[kind])
}

var lines = map[string]func(*event) string{
	"http": func(e *event) string {
		h := &e.HTTP
		return words(h.Method, h.Host+h.URL, h.Protocol, after("status", number(h.Status)), quoted("agent", h.UserAgent))
	},
	"tls": func(e *event) string { return e.TLS.line() },
	"quic": func(e *event) string {
		return words("to", e.QUIC.SNI, after("agent", e.QUIC.UserAgent), after("ja4", e.QUIC.JA4))
	},
	"ssh": func(e *event) string {
		c, s := &e.SSH.Client, &e.SSH.Server
		return words(after("client", c.Software), after("hassh", c.HASSH.Hash), after("server", s.Software))
	},
	"dns": func(e *event) string { return words(e.DNS.Type, e.DNS.RR, e.DNS.Name, e.DNS.RCode) },
	"smb": func(e *event) string {
		m := &e.SMB
		return words(strings.TrimPrefix(strings.TrimPrefix(m.Command, "SMB1_COMMAND_"), "SMB2_COMMAND_"), m.Dialect, m.Share, m.FileName,
			quoted("user", strings.TrimPrefix(m.NTLM.Domain+`\`+m.NTLM.User, `\`)), after("from", m.NTLM.Host), m.Status)
	},
	"ftp": func(e *event) string {
		return words(e.FTP.Command, e.FTP.Data, after("->", strings.Join(append(e.FTP.Code, e.FTP.Reply...), " ")))
	},
	"smtp": func(e *event) string {
		return words(after("helo", e.SMTP.Helo), after("from", e.SMTP.From), after("to", strings.Join(e.SMTP.To, ", ")))
	},
	"krb5": func(e *event) string {
		return words(e.KRB5.Type, after("client", e.KRB5.CName), after("service", e.KRB5.SName), after("realm", e.KRB5.Realm))
	},
	"rdp": func(e *event) string { return words(e.RDP.Type, quoted("cookie", e.RDP.Cookie)) },
	"pgsql": func(e *event) string {
		return words(quoted("user", e.PGSQL.Request.Startup.User), e.PGSQL.Request.Query)
	},
	deception.KindFile: func(e *event) string {
		f := &e.FileInfo
		return words(cmp.Or(f.Name, "(no name)"), fmt.Sprintf("%d bytes", f.Size), f.State,
			after("sha256", f.SHA256), after("md5", f.MD5), f.Magic)
	},
	deception.KindAnomaly: func(e *event) string { return words(e.Anomaly.Type, e.Anomaly.Event, after("at", e.Anomaly.Layer)) },
	deception.KindFlow: func(e *event) string {
		return words(e.Flow.State, after("by", e.Flow.Reason), fmt.Sprintf("packets %d/%d", e.Flow.PacketsToServer, e.Flow.PacketsToClient))
	},
}

func (t *tlsObject) line() string {
	return words(t.Version, after("to", t.SNI), after("ja4", t.JA4), after("ja3", t.JA3.Hash), quoted("subject", t.Subject))
}

// words joins what is not empty.
func words(parts ...string) string {
	out := parts[:0:0]
	for _, p := range parts {
		if p != "" {
			out = append(out, p)
		}
	}
	return strings.Join(out, " ")
}

// after is a word and what it names, or nothing.
func after(word, text string) string {
	if text == "" {
		return ""
	}
	return word + " " + text
}

func quoted(word, text string) string {
	if text == "" || text == `\` {
		return ""
	}
	return word + ` "` + text + `"`
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}
