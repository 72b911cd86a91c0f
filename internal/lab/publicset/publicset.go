// Package publicset makes sets of Suricata rules of the size and kind of those that
// suricata-update fetches, for tests and benchmarks: what such a set costs cannot
// be seen with a hundred rules, and the real ones are not there without a network.
//
// The shares of protocols, keywords and address lists are those of ET Open. The
// same Options always give the same rules.
package publicset

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
)

// Options say what a set is like.
type Options struct {
	Rules    int // that Suricata can load
	Broken   int // that it refuses, spread over the set
	Negated  int // that need the opposite of a group of addresses, as !$HOME_NET
	Disabled int // with a comment sign before them
	Seed     uint64
}

// FirstSID is the number of the first rule; the others follow.
const FirstSID = 2000000

// Whole is a set as large as ET Open.
func Whole() Options { return Options{Rules: 45000, Broken: 3, Negated: 12, Disabled: 9000} }

// Marker is what the set's first rule looks for in what a client sends.
const Marker = "publicset-marker"

// Write writes the set.
func Write(w io.Writer, o Options) error {
	out := bufio.NewWriterSize(w, 1<<20)
	g := &generator{random: rand.New(rand.NewPCG(o.Seed, 45000)), sid: FirstSID, out: out}
	fmt.Fprintf(out, "# A set of %d rules, made by a program.\n", o.Rules)
	g.put(`alert tcp $EXTERNAL_NET any -> $HOME_NET any (msg:"ET INFO marker"; flow:established,to_server; content:"`+Marker+`"; fast_pattern; `, "misc-activity")
	every := func(n int) int { return max(1, o.Rules/max(1, n)) }
	broken, negated, disabled := o.Broken, o.Negated, o.Disabled
	for i := 1; i < o.Rules; i++ {
		if disabled > 0 && i%every(o.Disabled) == 0 {
			fmt.Fprint(out, "# ")
			g.one()
			disabled--
		}
		if negated > 0 && i%every(o.Negated) == 0 {
			g.negated(negated)
			negated--
		}
		if broken > 0 && i%every(o.Broken) == 0 {
			g.broken(broken)
			broken--
		}
		g.one()
	}
	for ; negated > 0; negated-- {
		g.negated(negated)
	}
	for ; broken > 0; broken-- {
		g.broken(broken)
	}
	return out.Flush()
}

type generator struct {
	random *rand.Rand
	sid    int
	out    *bufio.Writer
}

// kinds of rules, each with its share of a thousand.
var kinds = []struct {
	share int
	make  func(*generator) (head, class string)
}{
	{190, (*generator).dns},
	{130, (*generator).sni},
	{170, (*generator).beacon},
	{160, (*generator).webAttack},
	{60, (*generator).header},
	{80, (*generator).page},
	{60, (*generator).stream},
	{25, (*generator).datagram},
	{20, (*generator).agent},
	{25, (*generator).certificate},
	{8, (*generator).ja3},
	{22, (*generator).addresses},
	{25, (*generator).flowbits},
	{10, (*generator).scan},
	{5, (*generator).xbits},
	{5, (*generator).smb},
	{5, (*generator).ssh},
}

func (g *generator) one() {
	n := g.random.IntN(1000)
	for _, k := range kinds {
		if n -= k.share; n < 0 {
			g.put(k.make(g))
			return
		}
	}
	g.put(g.dns())
}

// put ends a rule as ET does.
func (g *generator) put(head, class string) {
	year, month, day := 2010+g.random.IntN(15), 1+g.random.IntN(12), 1+g.random.IntN(28)
	date := fmt.Sprintf("%d_%02d_%02d", year, month, day)
	fmt.Fprintf(g.out, "%sreference:url,%s/%s; reference:md5,%016x%016x; classtype:%s; sid:%d; rev:%d; "+
		"metadata:affected_product Windows_XP_Vista_7_8_10_Server_32_64_Bit, attack_target Client_Endpoint, created_at %s, "+
		"deployment Perimeter, malware_family %s, confidence High, signature_severity Major, "+
		"updated_at %s, reviewed_at %s, mitre_tactic_id TA0011, mitre_technique_id T1071;)\n",
		head, g.domain(), g.word(8), g.random.Uint64(), g.random.Uint64(), class, g.sid, 1+g.random.IntN(9), date, g.word(7), date, date)
	g.sid++
}

const letters = "aeiourstlnmdcpbghfkvwxyzjq0123456789"

// word favours the letters that are frequent, as words do.
func (g *generator) word(n int) string {
	var b strings.Builder
	for range n + g.random.IntN(4) {
		b.WriteByte(letters[min(g.random.IntN(len(letters)), g.random.IntN(len(letters)))])
	}
	return b.String()
}

func (g *generator) pick(words ...string) string { return words[g.random.IntN(len(words))] }

func (g *generator) domain() string {
	name := g.word(6)
	if g.random.IntN(3) == 0 {
		name = g.word(4) + "." + name
	}
	return name + "." + g.pick("com", "net", "org", "top", "xyz", "ru", "info", "cyou", "shop", "duckdns.org")
}

func (g *generator) path() string {
	return "/" + g.word(4) + "/" + g.word(5) + "." + g.pick("php", "asp", "aspx", "jsp", "cgi", "bin", "dll", "exe", "do", "action")
}

func (g *generator) msg(group, what string) string {
	return fmt.Sprintf(`msg:"ET %s %s %s %s"; `, group, g.word(6), what, g.word(4))
}

func (g *generator) dns() (string, string) {
	d := g.domain()
	if g.random.IntN(3) == 0 {
		return `alert dns $HOME_NET any -> any any (` + g.msg("MALWARE", "Domain in DNS Lookup") + `dns.query; content:"` + d + `"; bsize:` + fmt.Sprint(len(d)) + `; nocase; fast_pattern; `, "trojan-activity"
	}
	return `alert dns $HOME_NET any -> any any (` + g.msg("MALWARE", "DNS Query to Domain") + `dns.query; dotprefix; content:".` + d + `"; nocase; endswith; fast_pattern; `, "domain-c2"
}

func (g *generator) sni() (string, string) {
	d := g.domain()
	rest := `content:"` + d + `"; bsize:` + fmt.Sprint(len(d)) + `; fast_pattern; `
	if g.random.IntN(2) == 0 {
		rest = `dotprefix; content:".` + d + `"; endswith; fast_pattern; `
	}
	return `alert tls $HOME_NET any -> $EXTERNAL_NET any (` + g.msg("MALWARE", "Observed Domain in TLS SNI") + `flow:established,to_server; tls.sni; ` + rest, "domain-c2"
}

// beacon is what a program of an attacker's asks its master.
func (g *generator) beacon() (string, string) {
	head := `alert http $HOME_NET any -> $EXTERNAL_NET any (` + g.msg("MALWARE", "CnC Checkin") + `flow:established,to_server; http.method; content:"` +
		g.pick("GET", "POST", "POST") + `"; http.uri; content:"` + g.path() + `?` + g.word(3) + `="; fast_pattern; `
	switch g.random.IntN(4) {
	case 0:
		head += fmt.Sprintf(`pcre:"/\.(?:php|asp)\?%s=[a-f0-9]{%d}(?:&%s=\d+)?$/"; `, g.word(3), 8*(1+g.random.IntN(4)), g.word(2))
	case 1:
		head += `http.user_agent; content:"Mozilla/4.0 (compatible|3b| ` + g.word(5) + `)"; bsize:<60; `
	case 2:
		head += `http.header_names; content:!"Referer|0d 0a|"; content:!"Accept-Language|0d 0a|"; `
	case 3:
		head += `http.request_body; content:"` + g.word(3) + `="; startswith; content:"&` + g.word(3) + `="; distance:0; within:64; `
	}
	return head, "command-and-control"
}

// webAttack is an exploit of a web application of some kind.
func (g *generator) webAttack() (string, string) {
	to := g.pick("$HTTP_SERVERS any", "$HTTP_SERVERS $HTTP_PORTS", "$HOME_NET any", "[$HOME_NET,$HTTP_SERVERS] any", "$HTTP_SERVERS [80,8080,8443,9090]")
	head := `alert http $EXTERNAL_NET any -> ` + to + ` (` + g.msg("WEB_SPECIFIC_APPS", "Parameter Injection Attempt") + `flow:established,to_server; http.uri; content:"` +
		g.path() + `?"; nocase; fast_pattern; content:"` + g.word(4) + `="; nocase; distance:0; `
	switch g.random.IntN(3) {
	case 0:
		head += `content:"SELECT"; nocase; distance:0; content:"FROM"; nocase; distance:0; pcre:"/SELECT.+FROM/i"; `
	case 1:
		head += `pcre:"/` + g.word(4) + `=[^&\r\n]*?(?:(?:ht|f)tps?:\/\/|data\:|\.\.\/)/i"; `
	case 2:
		head += `content:"%3Cscript"; nocase; within:200; `
	}
	return head, "web-application-attack"
}

func (g *generator) header() (string, string) {
	if g.random.IntN(2) == 0 {
		return `alert http $HOME_NET any -> $EXTERNAL_NET any (` + g.msg("POLICY", "Host Header") + `flow:established,to_server; http.host; dotprefix; content:".` + g.domain() + `"; endswith; fast_pattern; threshold:type limit, count 1, seconds 120, track by_src; `, "policy-violation"
	}
	return `alert http any any -> any any (` + g.msg("HUNTING", "Suspicious Header") + `flow:established,to_server; http.header; content:"X-` + g.word(6) + `|3a 20|"; fast_pattern; content:"` + g.word(5) + `"; within:80; `, "bad-unknown"
}

// page is what a server answers.
func (g *generator) page() (string, string) {
	head := `alert http $EXTERNAL_NET any -> $HOME_NET any (` + g.msg("PHISHING", "Landing Page") + `flow:established,to_client; http.stat_code; content:"200"; file_data; content:"<title>` +
		g.word(6) + ` ` + g.word(5) + `</title>"; nocase; fast_pattern; content:"` + g.word(8) + `"; nocase; distance:0; `
	if g.random.IntN(3) == 0 {
		head += `content:"document.write(unescape(|22|%` + g.word(5) + `"; within:500; pcre:"/^[a-z0-9]{4,40}\x22\x29/Ri"; `
	}
	return head, "credential-theft"
}

func (g *generator) bytes(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%02x", g.random.IntN(256))
	}
	return "|" + b.String() + "|"
}

func (g *generator) ports() string {
	return g.pick("any", "any", "!80", "[25,587]", "1024:", fmt.Sprint(1024+g.random.IntN(60000)), "[$HTTP_PORTS,445]", "445", "[139,445]", "$SSH_PORTS", "$ORACLE_PORTS", "![$HTTP_PORTS,443]", "21")
}

func (g *generator) stream() (string, string) {
	from, to := "$HOME_NET", "$EXTERNAL_NET"
	if g.random.IntN(2) == 0 {
		from, to = to, from
	}
	head := `alert tcp ` + from + ` any -> ` + to + ` ` + g.ports() + ` (` + g.msg("EXPLOIT", "Inbound Command") + `flow:established,to_server; content:"` + g.bytes(4+g.random.IntN(8)) + `"; depth:64; fast_pattern; `
	switch g.random.IntN(3) {
	case 0:
		head += fmt.Sprintf(`dsize:>%d; content:"%s"; distance:0; `, 8+g.random.IntN(40), g.word(5))
	case 1:
		head += `byte_test:4,>,1024,0,relative,little; `
	case 2:
		head += `byte_jump:2,0,relative,big; isdataat:10,relative; pcre:"/^[^\x00]{` + fmt.Sprint(16+g.random.IntN(100)) + `}/R"; `
	}
	return head, "attempted-admin"
}

func (g *generator) datagram() (string, string) {
	return `alert udp $EXTERNAL_NET any -> $HOME_NET ` + g.pick("53", "123", "161", "1900", "any", "5060:5061") + ` (` + g.msg("DOS", "Amplification Request") + `content:"` + g.bytes(6) + `"; depth:16; content:"` + g.word(4) + `"; distance:0; threshold:type both, track by_dst, count 100, seconds 60; `, "attempted-dos"
}

func (g *generator) agent() (string, string) {
	return `alert http $HOME_NET any -> $EXTERNAL_NET any (` + g.msg("USER_AGENTS", "Suspicious User-Agent") + `flow:established,to_server; http.user_agent; content:"` + g.word(8) + `/` + fmt.Sprint(g.random.IntN(9)) + `."; startswith; fast_pattern; `, "pup-activity"
}

func (g *generator) certificate() (string, string) {
	return `alert tls $EXTERNAL_NET any -> $HOME_NET any (` + g.msg("MALWARE", "Malicious SSL Certificate") + `flow:established,to_client; tls.cert_subject; content:"CN=` + g.domain() + `"; fast_pattern; tls.cert_issuer; content:"O=` + g.word(6) + `"; `, "domain-c2"
}

func (g *generator) ja3() (string, string) {
	return fmt.Sprintf(`alert tls $HOME_NET any -> $EXTERNAL_NET any (%sflow:established,to_server; ja3.hash; content:"%016x%016x"; fast_pattern; `, g.msg("JA3", "Hash - Possible Malware"), g.random.Uint64(), g.random.Uint64()), "unknown"
}

// addresses is a rule of a list of bad reputation.
func (g *generator) addresses() (string, string) {
	list := make([]string, 20+g.random.IntN(90))
	for i := range list {
		list[i] = fmt.Sprintf("%d.%d.%d.%d", 1+g.random.IntN(222), g.random.IntN(256), g.random.IntN(256), 1+g.random.IntN(254))
		if g.random.IntN(12) == 0 {
			list[i] = fmt.Sprintf("%d.%d.%d.0/24", 1+g.random.IntN(222), g.random.IntN(256), g.random.IntN(256))
		}
	}
	return `alert ` + g.pick("ip", "ip", "tcp") + ` [` + strings.Join(list, ",") + `] any -> $HOME_NET any (` + g.msg("CINS", "Active Threat Intelligence Poor Reputation IP group") +
		fmt.Sprintf(`threshold:type limit, track by_src, seconds 3600, count 1; flowbits:set,ET.Evil; flowbits:set,ET.group%d; `, g.random.IntN(200)), "misc-attack"
}

// flowbits are set in pairs, so that each that is asked for is set somewhere.
func (g *generator) flowbits() (string, string) {
	name := fmt.Sprintf("ET.%s.%d", g.word(5), g.sid)
	g.put(`alert http $HOME_NET any -> $EXTERNAL_NET any (`+g.msg("INFO", "Request for File")+`flow:established,to_server; flowbits:set,`+name+`; flowbits:noalert; http.uri; content:"`+g.path()+`"; fast_pattern; endswith; `, "misc-activity")
	return `alert http $EXTERNAL_NET any -> $HOME_NET any (` + g.msg("MALWARE", "Executable Retrieved") + `flow:established,to_client; flowbits:isset,` + name + `; file_data; content:"MZ"; within:2; content:"` + g.word(9) + `"; fast_pattern; distance:0; `, "trojan-activity"
}

func (g *generator) scan() (string, string) {
	return `alert tcp $EXTERNAL_NET any -> $HOME_NET ` + fmt.Sprint(1+g.random.IntN(10000)) + ` (` + g.msg("SCAN", "Suspicious inbound to port") + fmt.Sprintf(`flow:to_server; flags:S,12; threshold:type limit, count %d, seconds 60, track by_src; `, 5+g.random.IntN(20)), "attempted-recon"
}

func (g *generator) xbits() (string, string) {
	name := fmt.Sprintf("ET.x.%s.%d", g.word(5), g.sid)
	g.put(`alert tcp $HOME_NET any -> $EXTERNAL_NET any (`+g.msg("INFO", "Step one")+`flow:established,to_server; content:"`+g.word(9)+`"; fast_pattern; xbits:set,`+name+`,track ip_src,expire 300; noalert; `, "misc-activity")
	return `alert tcp $HOME_NET any -> $EXTERNAL_NET any (` + g.msg("MALWARE", "Step two") + `flow:established,to_server; xbits:isset,` + name + `,track ip_src; content:"` + g.word(9) + `"; fast_pattern; `, "trojan-activity"
}

func (g *generator) smb() (string, string) {
	return `alert smb any any -> $HOME_NET 445 (` + g.msg("NETBIOS", "SMB Executable Transfer") + `flow:established,to_server; content:"|fe|SMB"; offset:4; depth:4; content:"` + g.bytes(10) + `"; fast_pattern; distance:0; `, "bad-unknown"
}

func (g *generator) ssh() (string, string) {
	return `alert ssh $EXTERNAL_NET any -> $HOME_NET any (` + g.msg("SCAN", "SSH Client") + `flow:established,to_server; ssh.software; content:"` + g.word(8) + `"; fast_pattern; threshold:type both, track by_src, count 5, seconds 120; `, "attempted-recon"
}

// negated is a rule for one side of the network's edge only, of which there is none
// where both groups hold every address.
func (g *generator) negated(n int) {
	head := []string{
		"alert tcp !$HOME_NET any -> $HOME_NET 3389", "alert http $HOME_NET any -> !$HOME_NET any", "alert dns ![$DNS_SERVERS,$SMTP_SERVERS] any -> any 53",
		"alert tcp [!$HOME_NET,!192.0.2.1] any -> $HOME_NET 22", "alert smtp !$SMTP_SERVERS any -> !$HOME_NET any", "alert udp ![$HOME_NET] any <> $HOME_NET 123",
	}[n%6]
	g.put(head+` (`+g.msg("POLICY", "Over the Edge")+`content:"negated`+fmt.Sprint(n%6)+`"; fast_pattern; `, "policy-violation")
}

// broken is a rule that this Suricata refuses.
func (g *generator) broken(n int) {
	option := []string{
		`contents:"x"; `, `ja5.hash; content:"abc"; `, `content:"unended; `, `pcre:"/(unclosed/"; `, `content:"x"; http.uri_raw; `, `flow:established,to_nobody; `, `content:"x"; byte_test:1,?,2,0; `,
	}[n%7]
	g.put(`alert tcp $EXTERNAL_NET any -> $HOME_NET any (`+g.msg("MALWARE", "Rule of another version")+option, "trojan-activity")
}
