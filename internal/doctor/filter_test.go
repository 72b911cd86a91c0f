package doctor

import (
	"testing"

	"decoynet/internal/kernel/survey"
)

func TestBlocking(t *testing.T) {
	through := packet{in: "dnv-1", out: "br-linux", family: "ipv4", transport: "tcp", state: "new"}
	rule := func(v survey.Verdict, c ...survey.Condition) survey.Rule {
		return survey.Rule{Verdict: v, Conditions: c}
	}
	in := func(not bool, v ...string) survey.Condition {
		return survey.Condition{Key: survey.InputLink, Not: not, Values: v}
	}
	forward := func(drop bool, rules ...survey.Rule) survey.Chain {
		return survey.Chain{Family: "ip", Table: "filter", Name: "FORWARD", Hook: "forward", Drop: drop, Rules: rules}
	}
	user := func(name string, rules ...survey.Rule) survey.Chain {
		return survey.Chain{Family: "ip", Table: "filter", Name: name, Rules: rules}
	}
	opaque := func(r survey.Rule) survey.Rule { r.Opaque = true; return r }
	jump := func(v survey.Verdict, to string) survey.Rule { return survey.Rule{Verdict: v, Target: to} }
	for _, c := range []struct {
		name   string
		chains []survey.Chain
		want   bool
	}{
		{"policy accept", []survey.Chain{forward(false)}, false},
		{"policy drop", []survey.Chain{forward(true)}, true},
		{"another family", []survey.Chain{{Family: "ip6", Hook: "forward", Drop: true}}, false},
		{"another hook", []survey.Chain{{Family: "ip", Hook: "input", Drop: true}}, false},
		{"accepted by link", []survey.Chain{forward(true, rule(survey.Accept, in(false, "dnv-*")))}, false},
		{"another link", []survey.Chain{forward(true, rule(survey.Accept, in(false, "eth0", "eth1")))}, true},
		{"all but a link", []survey.Chain{forward(false, rule(survey.Drop, in(true, "eth0")))}, true},
		{"state", []survey.Chain{forward(true, rule(survey.Accept, survey.Condition{Key: survey.State, Values: []string{"established", "related"}}))}, true},
		{"perhaps accepted", []survey.Chain{forward(true, opaque(rule(survey.Accept)))}, false},
		{"perhaps, but another link", []survey.Chain{forward(true, opaque(rule(survey.Accept, in(false, "eth0"))))}, true},
		{"perhaps dropped", []survey.Chain{forward(false, opaque(rule(survey.Drop)))}, false},
		{"not understood", []survey.Chain{forward(true, rule(survey.Unknown))}, false},
		{"only counted", []survey.Chain{forward(true, rule(survey.Continue))}, true},
		{"accepted in a chain", []survey.Chain{forward(true, jump(survey.Jump, "a")), user("a", jump(survey.Goto, "b")), user("b", rule(survey.Accept))}, false},
		{"returned from a chain", []survey.Chain{forward(true, jump(survey.Jump, "a")), user("a", rule(survey.Return), rule(survey.Accept))}, true},
		{"goes on behind a jump", []survey.Chain{forward(true, jump(survey.Jump, "a"), rule(survey.Accept)), user("a")}, false},
		{"goto does not come back", []survey.Chain{forward(true, jump(survey.Goto, "a"), rule(survey.Accept)), user("a")}, true},
		{"a chain not seen", []survey.Chain{forward(true, jump(survey.Jump, "a"))}, false},
		{"a loop", []survey.Chain{forward(true, jump(survey.Jump, "a")), user("a", jump(survey.Jump, "a"))}, false},
		{"two tables", []survey.Chain{forward(false), {Family: "inet", Table: "host", Name: "f", Hook: "forward", Rules: []survey.Rule{rule(survey.Drop)}}}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := len(blocking(c.chains, "forward", through)) > 0; got != c.want {
				t.Errorf("blocked: %t, want %t", got, c.want)
			}
		})
	}
}
