package suricata

import "strings"

// ruleCase is one rule with a flow that fires it and one, much like it, that does
// not.
type ruleCase struct {
	sid         uint32
	port        uint16
	udp         bool
	fire, quiet []say
}

func from(parts ...string) []say { // the client's words and the server's in turn, the client first
	var out []say
	for i, text := range parts {
		if text != "" {
			out = append(out, say{i%2 == 0, text})
		}
	}
	return out
}

const (
	okay    = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	refused = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"
)

func get(uri string, headers ...string) string {
	return request("GET", uri, "", headers...)
}

func request(method, uri, body string, headers ...string) string {
	var b strings.Builder
	b.WriteString(method + " " + uri + " HTTP/1.1\r\nHost: decoy\r\n")
	for _, h := range headers {
		b.WriteString(h + "\r\n")
	}
	if body != "" {
		b.WriteString("Content-Length: " + itoa(len(body)) + "\r\n")
	}
	return b.String() + "\r\n" + body
}

func post(body string) string { return request("POST", "/login", body) }

// web makes the cases of rules about requests: what fires and what does not.
func web(sid uint32, fire, quiet string) ruleCase {
	return ruleCase{sid: sid, port: 80, fire: from(fire, okay), quiet: from(quiet, okay)}
}

// words makes the cases of rules about the client's first words.
func words(sid uint32, port uint16, fire, quiet string) ruleCase {
	return ruleCase{sid: sid, port: port, fire: from(fire, "?"), quiet: from(quiet, "?")}
}

func packets(sid uint32, port uint16, fire, quiet string) ruleCase {
	return ruleCase{sid: sid, port: port, udp: true, fire: from(fire), quiet: from(quiet)}
}

func wide(s string) string { return strings.Join(strings.Split(s, ""), "\x00") + "\x00" }

// smb2 is a message of SMB 2 with a command.
func smb2(command byte, status string, body string) string {
	header := "\xfeSMB\x40\x00\x00\x00" + status + string([]byte{command, 0}) + strings.Repeat("\x00", 50)
	return netbios(header + body)
}

func smb1(command byte, body string) string {
	return netbios("\xffSMB" + string([]byte{command}) + strings.Repeat("\x00", 27) + body)
}

func netbios(body string) string {
	return string([]byte{0, 0, byte(len(body) >> 8), byte(len(body))}) + body
}

const (
	success   = "\x00\x00\x00\x00"
	refusedNT = "\x6d\x00\x00\xc0"
)

// resp is a command as Redis's clients send it.
func resp(args ...string) string {
	var b strings.Builder
	b.WriteString("*" + itoa(len(args)) + "\r\n")
	for _, a := range args {
		b.WriteString("$" + itoa(len(a)) + "\r\n" + a + "\r\n")
	}
	return b.String()
}

// postgres is a message with a type; 0 for those that begin a session.
func postgres(kind byte, body string) string {
	n := len(body) + 4
	text := string([]byte{0, 0, byte(n >> 8), byte(n)}) + body
	if kind != 0 {
		text = string([]byte{kind}) + text
	}
	return text
}

// mysql is a packet with its sequence number.
func mysql(seq byte, body string) string {
	return string([]byte{byte(len(body)), byte(len(body) >> 8), 0, seq}) + body
}

var (
	startup       = postgres(0, "\x00\x03\x00\x00user\x00postgres\x00\x00")
	mysqlGreeting = mysql(0, "\x0a8.0.36\x00\x01\x00\x00\x00abcdefgh\x00\xff\xff\xff\x02\x00\xff\xc1\x15"+strings.Repeat("\x00", 10)+"abcdefghijkl\x00")
	mysqlLogin    = mysql(1, "\x85\xa6\xff\x01\x00\x00\x00\x01\x21"+strings.Repeat("\x00", 23)+"root\x00\x14"+strings.Repeat("x", 20))
	tdsLogin      = "\x10\x01\x00\x90\x00\x00\x01\x00\x88\x00\x00\x00\x04\x00\x00\x74" + strings.Repeat("\x00", 120)
	mqttConnect   = "\x10\x19\x00\x04MQTT\x04\xc2\x00\x3c\x00\x01a\x00\x04user\x00\x04pass"
	mqttNobody    = "\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a"
	ldapBind      = "\x30\x20\x02\x01\x01\x60\x1b\x02\x01\x03\x04\x0ecn=admin,dc=lan\x80\x06secret"
	snmpGet       = "\x30\x26\x02\x01\x00\x04\x06public\xa0\x19\x02\x01\x01\x02\x01\x00\x02\x01\x00\x30\x0e\x30\x0c\x06\x08\x2b\x06\x01\x02\x01\x01\x01\x00\x05\x00"
	snmpUser      = "\x30\x40\x02\x01\x03\x30\x0e\x02\x01\x01\x02\x03\x00\xff\xe3\x04\x01\x04\x02\x01\x03\x04\x15\x30\x13\x04\x00\x02\x01\x00\x02\x01\x00\x04\x05admin\x04\x00\x04\x00" +
		"\x30\x14\x04\x00\x04\x00\xa0\x0e\x02\x04\x00\x00\x00\x01\x02\x01\x00\x02\x01\x00\x30\x00"
	kerberos = "\x6a\x40\x30\x3e\xa1\x03\x02\x01\x05\xa2\x03\x02\x01\x0a\xa3\x0c" + strings.Repeat("x", 40)
)

func dnsQuery(kind, class byte, labels ...string) string {
	text := "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
	for _, l := range labels {
		text += string([]byte{byte(len(l))}) + l
	}
	return text + "\x00\x00" + string([]byte{kind}) + "\x00" + string([]byte{class})
}

func overTCP(message string) string {
	return string([]byte{byte(len(message) >> 8), byte(len(message))}) + message
}

const (
	vncServer = "RFB 003.008\n"
	ftpHello  = "220 ready\r\n"
)

// contactCases, and below them those of the other files, hold every rule.
var contactCases = []ruleCase{
	{sid: 14200001, port: 4000, fire: from("hello"), quiet: from("", "banner")},
	{sid: 14200002, port: 4000, fire: from("", "banner"), quiet: from("hello")},
	{sid: 14200003, port: 4000, udp: true, fire: from("hello"), quiet: []say{{client: true}}},
	{sid: 14200004, port: 4000, udp: true, fire: []say{{client: true}}, quiet: from("hello")},
}

var enumerationCases = []ruleCase{
	words(14200101, 80, get("/"), "no HTTP at all\r\n"),
	web(14200102, get("/", "User-Agent: Mozilla/5.0 zgrab/0.x"), get("/", "User-Agent: Mozilla/5.0")),
	web(14200103, get("/.env"), get("/environment")),
	web(14200104, get("/phpmyadmin/"), get("/admiral")),
	web(14200105, get("/v1.41/containers/json"), get("/v1/containers")),
	web(14200106, request("CONNECT", "example.org:443", ""), get("/CONNECT")),
	web(14200107, request("PROPFIND", "/", ""), get("/PROPFIND")),
	words(14200108, 443, clientHello(), "\x16\x03\x01\x00\x00"),
	{sid: 14200109, port: 22, fire: from("", "SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0-OpenSSH_8.9\r\n"), quiet: from("", "SSH-2.0-OpenSSH_9.2\r\n", "\r\n")},
	{sid: 14200110, port: 22, fire: from("", "SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0-libssh_0.9\r\n"), quiet: from("", "SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0-OpenSSH_8.9\r\n")},
	words(14200111, 445, smb2(0, success, "\x24\x00"), smb2(3, success, "\x09\x00")),
	words(14200112, 445, smb2(3, success, wide(`\\D\IPC$`)+"\x00"), smb2(3, success, wide(`\\D\data`))),
	{sid: 14200113, port: 21, fire: from("", ftpHello, "SYST\r\n"), quiet: from("", ftpHello, "QUIT\r\n")},
	words(14200114, 23, "\xff\xfd\x03", "root\r\n"),
	words(14200115, 3389, "\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00", "\x03\x00\x00\x07\x02\xf0\x80"),
	{sid: 14200116, port: 5900, fire: from("", vncServer, vncServer), quiet: from("", vncServer, "RTB")},
	packets(14200117, 69, "\x00\x01boot.img\x00octet\x00", "\x00\x04\x00\x01"),
	words(14200118, 5555, "CNXN\x00\x00\x00\x01\x00\x10\x00\x00\x07\x00\x00\x00host::\x00", "CNXX"),
	words(14200119, 6379, resp("INFO"), resp("QUIT")),
	words(14200120, 6379, "CONFIG GET *\r\n", resp("CONFIG", "RESETSTAT")),
	words(14200121, 5432, startup, postgres('X', "")),
	words(14200122, 27017, "\x30\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xd4\x07\x00\x00\x00\x00\x00\x00admin.$cmd\x00isMaster\x00", "\x30\x00\x00\x00isMaster"),
	words(14200123, 11211, "stats items\r\n", "statistics\r\n"),
	words(14200124, 1433, "\x12\x01\x00\x2f\x00\x00\x01\x00\x00\x00\x1a\x00\x06", "\x12\x02\x00\x2f"),
	{sid: 14200125, port: 25, fire: from("", "220 mail\r\n", "EHLO me\r\n"), quiet: from("", "220 mail\r\n", "QUIT\r\n")},
	{sid: 14200126, port: 25, fire: from("", "220 mail\r\n", "VRFY root\r\n"), quiet: from("", "220 mail\r\n", "EHLO me\r\n")},
	packets(14200127, 53, dnsQuery(1, 1, "example", "org"), "no DNS"),
	packets(14200128, 53, dnsQuery(16, 3, "version", "bind"), dnsQuery(16, 1, "example", "org")),
	packets(14200129, 5060, "OPTIONS sip:100@decoy SIP/2.0\r\nVia: SIP/2.0/UDP a\r\n\r\n", "INVITE sip:100@decoy SIP/2.0\r\n\r\n"),
	words(14200130, 502, "\x00\x01\x00\x00\x00\x06\x01\x03\x00\x00\x00\x0a", "\x00\x01\x00\x01\x00\x06\x01\x03"),
	words(14200131, 102, "\x03\x00\x00\x16\x11\xe0\x00\x00\x00\x01\x00\xc0\x01\x0a\xc1\x02\x01\x00\xc2\x02\x01\x02", "\x03\x00\x00\x07\x02\xf0\x80"),
	words(14200132, 1883, mqttNobody, "\xc0\x00"),
	words(14200133, 389, "\x30\x25\x02\x01\x02\x63\x20\x04\x00\x0a\x01\x00\x0a\x01\x00\x02\x01\x00\x02\x01\x00\x01\x01\x00\x87\x0bobjectClass\x30\x00", ldapBind),
	words(14200134, 135, "\x05\x00\x0b\x03\x10\x00\x00\x00\x48\x00\x00\x00\x01\x00\x00\x00\xd0\x16\xd0\x16\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x01\x00\x08\x83\xaf\xe1\x1f\x5d\xc9\x11\x91\xa4\x08\x00\x2b\x14\xa0\xfa\x03\x00\x00\x00", "\x05\x00\x0b\x03\x10\x00\x00\x00"),
}

var (
	basic    = get("/", "Authorization: Basic YWRtaW46YWRtaW4=")
	smbLogin = smb2(1, success, "\x19\x00NTLMSSP\x00\x03\x00\x00\x00")
)

var credentialCases = []ruleCase{
	{sid: 14200201, port: 21, fire: from("", ftpHello, "PASS guest\r\n"), quiet: from("", ftpHello, "USER guest\r\n")},
	web(14200202, basic, get("/", "Authorization: Bearer abc")),
	web(14200203, get("/", "Authorization: Bearer abc"), basic),
	web(14200204, post("user=admin&password=admin"), post("note=bypass+gate")),
	{sid: 14200205, port: 22, fire: from("SSH-2.0-a\r\n", "SSH-2.0-b\r\n", "\x00\x00\x00\x0c\x0a\x15"+strings.Repeat("\x00", 10)), quiet: from("SSH-2.0-a\r\n", "SSH-2.0-b\r\n", "\x00\x00\x00\x0c\x0a\x14"+strings.Repeat("\x00", 10))},
	words(14200206, 445, smbLogin, smb2(1, success, "\x19\x00NTLMSSP\x00\x01\x00\x00\x00")),
	words(14200207, 3389, "\x30\x40NTLMSSP\x00\x03\x00\x00\x00", smbLogin),
	words(14200208, 6379, resp("AUTH", "secret"), resp("ECHO", "AUTH")),
	{sid: 14200209, port: 5432, fire: from(startup, "R\x00\x00\x00\x08\x00\x00\x00\x03", postgres('p', "secret\x00")), quiet: from(startup, "R\x00\x00\x00\x08\x00\x00\x00\x03", postgres('X', ""))},
	{sid: 14200210, port: 3306, fire: from("", mysqlGreeting, mysqlLogin), quiet: from("", mysqlGreeting, mysql(1, "\x01"))},
	words(14200211, 1433, tdsLogin, "\x10\x01\x00\x08\x00\x00\x01\x00"),
	words(14200212, 3389, "\x03\x00\x00\x2c\x27\xe0\x00\x00\x00\x00\x00Cookie: mstshash=admin\r\n\x01\x00\x08\x00\x03\x00\x00\x00", "\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00"),
	{sid: 14200213, port: 5900, fire: vnc("\x02", success), quiet: from("", vncServer, vncServer, "\x01\x01", "\x01", success)},
	packets(14200214, 161, snmpGet, "\x30\x03\x02\x01\x00"),
	packets(14200215, 161, snmpUser, snmpGet),
	{sid: 14200216, port: 143, fire: from("", "* OK\r\n", "a1 LOGIN root root\r\n"), quiet: from("", "* OK\r\n", "a1 CAPABILITY\r\n")},
	{sid: 14200217, port: 25, fire: from("", "220 mail\r\n", "AUTH LOGIN\r\n"), quiet: from("", "220 mail\r\n", "AUTHOR\r\n")},
	words(14200218, 1883, mqttConnect, mqttNobody),
	words(14200219, 389, ldapBind, "\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\x00\x80\x00"),
	packets(14200220, 88, kerberos, strings.Replace(kerberos, "\x0a\xa3", "\x0c\xa3", 1)),
	{sid: 14200221, port: 23, fire: from("", "login: ", "root\r\n", "Password: ", "root\r\n"), quiet: from("", "login: ", "root\r\n")},
	packets(14200222, 5060, "REGISTER sip:decoy SIP/2.0\r\nVia: SIP/2.0/UDP a\r\nFrom: <sip:1@decoy>\r\nTo: <sip:1@decoy>\r\nCall-ID: 1\r\nCSeq: 1 REGISTER\r\nContent-Length: 0\r\n\r\n", "OPTIONS sip:decoy SIP/2.0\r\nVia: SIP/2.0/UDP a\r\n\r\n"),
	words(14200223, 3389, "\x30\x40NTLMSSP\x00\x01\x00\x00\x00", "\x30\x40NTLMSSP\x00\x02\x00\x00\x00"),
	words(14200224, 1080, "\x05\x01\x00", "\x06\x01\x00"),
	{sid: 14200291, port: 3306, quiet: from("", mysqlGreeting)},
	{sid: 14200292, port: 23, quiet: from("", "Password: ")},
}

// vnc is a whole handshake with a password.
func vnc(chosen, result string) []say {
	return from("", vncServer, vncServer, "\x01\x02", chosen, strings.Repeat("c", 16), strings.Repeat("r", 16), result)
}

func itoa(n int) string {
	if n < 10 {
		return string([]byte{'0' + byte(n)})
	}
	return itoa(n/10) + itoa(n%10)
}
