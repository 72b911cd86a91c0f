package suricata

import "testing"

func TestWiden(t *testing.T) {
	for _, c := range []struct{ head, want string }{
		{"alert tcp !$HOME_NET any -> $HOME_NET 22", "alert tcp any any -> $HOME_NET 22"},
		{"alert tcp $HOME_NET any -> !$HOME_NET any", "alert tcp $HOME_NET any -> any any"},
		{"alert tcp ![$DNS_SERVERS,$SMTP_SERVERS] any -> any !53", "alert tcp any any -> any !53"},
		{"alert tcp [!$HOME_NET,!192.0.2.1] any -> any any", "alert tcp [!192.0.2.1] any -> any any"},
		{"alert tcp [$EXTERNAL_NET, !$HOME_NET] any -> any any", "alert tcp [$EXTERNAL_NET] any -> any any"},
		{"alert tcp ![$HOME_NET,[10.0.0.0/8,$SQL_SERVERS]] any <> any [!$HTTP_PORTS,80]", "alert tcp ![[10.0.0.0/8]] any <> any [!$HTTP_PORTS,80]"},
		{"alert tcp !any any -> any any", "alert tcp !any any -> any any"},
		{"alert tcp !$MINE any -> $HOME_NET any", "alert tcp !$MINE any -> $HOME_NET any"},
		{"alert tcp ![!$HOME_NET] any -> $HOME_NET any", "alert tcp ![!$HOME_NET] any -> $HOME_NET any"},
		{"alert tcp $HOME_NET any -> any any !$HOME_NET", "alert tcp $HOME_NET any -> any any !$HOME_NET"}, // no rule: as it is, for Suricata to refuse
		{"alert tcp [!$HOME_NET any -> $HOME_NET any", "alert tcp [!$HOME_NET any -> $HOME_NET any"},
	} {
		const options = ` (msg:"!$HOME_NET (1)"; sid:1;)`
		got, changed := widen(c.head + options)
		if got != c.want+options || changed != (c.head != c.want) {
			t.Errorf("%q became %q (%v), not %q", c.head, got, changed, c.want)
		}
	}
}
