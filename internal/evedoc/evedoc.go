// Package evedoc reads what Suricata's EVE documents say of a session: who the
// client is, and one line for people. Documents are what other programs made of
// an intruder's bytes, so nothing in them is relied upon: what is not there, or of
// another kind than it should be, says nothing.
//
// See https://docs.suricata.io/en/suricata-7.0.10/output/eve/eve-json-format.html.
package evedoc

import (
	"encoding/json"
	"strings"

	"decoynet/deception"
)

// maxText is how much of a text is kept, in bytes.
const maxText = 255

// Analyse sets in a what the document says and a does not have yet.
func Analyse(kind string, document []byte, a *deception.Analysis) {
	if !tells[kind] {
		return
	}
	var e event
	// An object of another shape than expected leaves the others readable.
	_ = json.Unmarshal(document, &e)
	first(&a.UserAgent, e.HTTP.UserAgent, e.QUIC.UserAgent)
	first(&a.JA3, e.TLS.JA3.Hash, e.QUIC.JA3.Hash)
	first(&a.JA4, e.TLS.JA4, e.QUIC.JA4)
	first(&a.SSH, e.SSH.Client.Software)
	first(&a.HASSH, e.SSH.Client.HASSH.Hash)
	first(&a.ServerName, e.TLS.SNI, e.QUIC.SNI, e.HTTP.Host)
	first(&a.User, e.user())
}

// tells holds the kinds whose documents say who the client is.
var tells = map[string]bool{
	"http": true, "quic": true, "tls": true, "ssh": true, "ftp": true, "smb": true, "krb5": true,
	"rdp": true, "mqtt": true, "pgsql": true, deception.KindAlert: true,
}

// first sets the field to the first text that is not empty, if it has none.
func first(field *string, texts ...string) {
	for _, text := range texts {
		if *field != "" {
			return
		}
		if len(text) > maxText {
			text = strings.ToValidUTF8(text[:maxText], "")
		}
		*field = text
	}
}

// fingerprint is a hash of Suricata's, which comes with what it was made of.
type fingerprint struct {
	Hash string `json:"hash"`
}

// event is what is looked at of a document.
type event struct {
	HTTP     httpObject `json:"http"`
	TLS      tlsObject  `json:"tls"`
	QUIC     quicObject `json:"quic"`
	SSH      sshObject  `json:"ssh"`
	DNS      dnsObject  `json:"dns"`
	SMB      smbObject  `json:"smb"`
	FTP      ftpObject  `json:"ftp"`
	SMTP     smtpObject `json:"smtp"`
	KRB5     krbObject  `json:"krb5"`
	RDP      rdpObject  `json:"rdp"`
	MQTT     mqttObject `json:"mqtt"`
	PGSQL    pgObject   `json:"pgsql"`
	FileInfo fileObject `json:"fileinfo"`
	Anomaly  anomaly    `json:"anomaly"`
	Flow     flowObject `json:"flow"`
}

type httpObject struct {
	Host      string `json:"hostname"`
	URL       string `json:"url"`
	UserAgent string `json:"http_user_agent"`
	Method    string `json:"http_method"`
	Protocol  string `json:"protocol"`
	Status    int    `json:"status"`
	Length    int64  `json:"length"`
}

type tlsObject struct {
	SNI     string      `json:"sni"`
	Version string      `json:"version"`
	Subject string      `json:"subject"`
	JA3     fingerprint `json:"ja3"`
	JA4     string      `json:"ja4"`
}

type quicObject struct {
	SNI       string      `json:"sni"`
	UserAgent string      `json:"ua"`
	Version   string      `json:"version"`
	JA3       fingerprint `json:"ja3"`
	JA4       string      `json:"ja4"`
}

type sshObject struct {
	Client sshSide `json:"client"`
	Server sshSide `json:"server"`
}

type sshSide struct {
	Software string      `json:"software_version"`
	HASSH    fingerprint `json:"hassh"`
}

type dnsObject struct {
	Type  string `json:"type"`
	Name  string `json:"rrname"`
	RR    string `json:"rrtype"`
	RCode string `json:"rcode"`
}

type smbObject struct {
	Command  string `json:"command"`
	Dialect  string `json:"dialect"`
	Status   string `json:"status"`
	FileName string `json:"filename"`
	Share    string `json:"share"`
	NTLM     struct {
		Domain string `json:"domain"`
		User   string `json:"user"`
		Host   string `json:"host"`
	} `json:"ntlmssp"`
}

type ftpObject struct {
	Command string   `json:"command"`
	Data    string   `json:"command_data"`
	Code    []string `json:"completion_code"`
	Reply   []string `json:"reply"`
}

type smtpObject struct {
	Helo string   `json:"helo"`
	From string   `json:"mail_from"`
	To   []string `json:"rcpt_to"`
}

type krbObject struct {
	Type  string `json:"msg_type"`
	CName string `json:"cname"`
	SName string `json:"sname"`
	Realm string `json:"realm"`
}

type rdpObject struct {
	Type   string `json:"event_type"`
	Cookie string `json:"cookie"`
}

type mqttObject struct {
	Connect struct {
		ClientID string `json:"client_id"`
		User     string `json:"username"`
	} `json:"connect"`
}

type pgObject struct {
	Request struct {
		Query   string `json:"simple_query"`
		Startup struct {
			User     string          `json:"user"`
			Optional json.RawMessage `json:"optional_parameters"`
		} `json:"startup_parameters"`
	} `json:"request"`
}

type fileObject struct {
	Name   string `json:"filename"`
	Size   uint64 `json:"size"`
	State  string `json:"state"`
	Magic  string `json:"magic"`
	MD5    string `json:"md5"`
	SHA1   string `json:"sha1"`
	SHA256 string `json:"sha256"`
}

type anomaly struct {
	Type  string `json:"type"`
	Event string `json:"event"`
	Layer string `json:"layer"`
}

type flowObject struct {
	PacketsToServer uint64 `json:"pkts_toserver"`
	PacketsToClient uint64 `json:"pkts_toclient"`
	Reason          string `json:"reason"`
	State           string `json:"state"`
	Alerted         bool   `json:"alerted"`
}

// user is who the client claims to be.
func (e *event) user() string {
	switch {
	case strings.EqualFold(e.FTP.Command, "USER"):
		return e.FTP.Data
	case e.SMB.NTLM.User != "":
		return e.SMB.NTLM.User
	case e.KRB5.CName != "" && e.KRB5.CName != "<empty>":
		return e.KRB5.CName
	case e.RDP.Cookie != "":
		return e.RDP.Cookie
	case e.MQTT.Connect.User != "":
		return e.MQTT.Connect.User
	}
	return e.PGSQL.Request.Startup.User
}
