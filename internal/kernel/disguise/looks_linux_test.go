package disguise

import (
	"regexp"
	"strings"
	"testing"

	"decoynet/deception"
	"decoynet/internal/kernel/netns/netnstest"
)

// nmap is the witness of what a decoy looks like. Its database, of 2022, knows
// Linux up to 5.6 and numbers its timestamps for each pair of addresses; newer
// kernels do for each connection, which it takes for an unknown system (TS=). It
// knows systems by their luck with initial sequence numbers too (SP=): now and then
// a perfect match is one of 99 %.
func TestNmapSees(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name        string
		personality deception.Personality
		details     string // what nmap says
		fingerprint []string
	}{
		{
			"windows", deception.PersonalityWindows,
			`(OS details|Aggressive OS guesses): Microsoft Windows 10 1709 - 1909`,
			[]string{
				"TI=I%CI=I%II=I%SS=S%TS=U", "O1=M5B4NW8NNS%O2=M5B4NW8NNS%O3=M5B4NW8%O4=M5B4NW8NNS%O5=M5B4NW8NNS%O6=M5B4NNS",
				"W1=FFFF%W2=FFFF%W3=FFFF%W4=FFFF%W5=FFFF%W6=FF70", "ECN(R=Y%DF=Y%T=80%W=FFFF%O=M5B4NW8NNS%CC=N%Q=)", "CD=Z",
			},
		},
		{
			"linux", deception.PersonalityLinux,
			`(OS details|Aggressive OS guesses): Linux [2-6]\.`,
			[]string{"O1=M5B4ST11NW7", "W1=FE88", "ECN(R=Y%DF=Y%T=40%W=FAF0%O=M5B4NNSNW7%CC=Y%Q=)", "T2(R=N)T3(R=N)", "CD=S"},
		},
		{
			"none", "",
			`(OS details|Aggressive OS guesses): Linux [2-6]\.`,
			[]string{"O1=M5B4ST11NW", "T2(R=N)T3(R=N)", "CD=S"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newDecoyLAN(t)
			p := everything()
			p.Personality = c.personality
			l.apply(t, p)
			l.echo(t)
			seen := l.capture(t)
			out := netnstest.Run(t, l.Intruder, "nmap", "-O", "--osscan-guess", "--max-os-tries", "1", "-d", "-n", "-Pn", "-p", "7,9", "192.0.2.101")
			t.Log(strings.Join(regexp.MustCompile(`(?m)^(OS details|Aggressive OS guesses|OS:SCAN).*$`).FindAllString(out, -1), "\n"))
			if !regexp.MustCompile(c.details).MatchString(out) {
				t.Errorf("nmap does not say %q:\n%s", c.details, out)
			}
			if !strings.Contains(out, "(Dell)") {
				t.Errorf("nmap names another vendor:\n%s", out)
			}
			fingerprint := strings.ReplaceAll(strings.Join(regexp.MustCompile(`(?m)^OS:(.*)$`).FindAllString(out, -1), ""), "OS:", "")
			if fingerprint == "" { // of a perfect match it is one test a line
				fingerprint = out
			}
			for _, want := range c.fingerprint {
				if !strings.Contains(fingerprint, want) {
					t.Errorf("the fingerprint lacks %s:\n%s", want, fingerprint)
				}
			}
			for _, f := range seen.all() {
				if err := checksums(f.raw); err != nil {
					t.Errorf("frame from %s: %v\n%x", f.from, err, f.raw)
				}
			}
		})
	}
}
