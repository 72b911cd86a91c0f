package doctor

import (
	"slices"
	"strings"

	"decoynet/internal/kernel/survey"
)

// packet is what a filter may look at.
type packet struct {
	in, out   string // links; out is empty for a packet to this host
	family    string // ipv4, ipv6
	transport string
	state     string // of its connection
}

// outcome is a set of what may become of a packet.
type outcome uint8

const (
	accepted outcome = 1 << iota
	dropped
	returned
)

// blocking returns the base chains of the hook that drop the packet for
// certain. A chain whose rules were not all understood is not among them
// unless none of those could have accepted the packet.
func blocking(chains []survey.Chain, hook string, p packet) []survey.Chain {
	var out []survey.Chain
	for i := range chains {
		c := &chains[i]
		if c.Hook != hook || !concerns(c.Family, p.family) {
			continue
		}
		o := walk(chains, c, p, 0)
		if o&returned != 0 {
			o &^= returned
			if c.Drop {
				o |= dropped
			} else {
				o |= accepted
			}
		}
		if o&accepted == 0 {
			out = append(out, *c)
		}
	}
	return out
}

func concerns(table, family string) bool {
	return table == "inet" || table == "ip" && family == "ipv4" || table == "ip6" && family == "ipv6"
}

// maxDepth is the kernel's own limit of nested jumps (NFT_JUMP_STACK_SIZE).
const maxDepth = 16

// walk returns what may become of the packet in the chain; returned says that it
// may come to its end.
func walk(chains []survey.Chain, c *survey.Chain, p packet, depth int) outcome {
	var out outcome
	for i := range c.Rules {
		r := &c.Rules[i]
		sure, possible := matches(r, p)
		if !possible {
			continue
		}
		ends := outcome(0)
		switch r.Verdict {
		case survey.Accept:
			ends = accepted
		case survey.Drop:
			ends = dropped
		case survey.Return:
			ends = returned
		case survey.Jump, survey.Goto:
			ends = accepted | dropped | returned
			if target := chainOf(chains, c, r.Target); target != nil && depth < maxDepth {
				ends = walk(chains, target, p, depth+1)
			}
			if r.Verdict == survey.Jump && ends&returned != 0 {
				ends &^= returned
				sure = false // it goes on behind the jump
			}
		case survey.Unknown:
			ends, sure = accepted|dropped, false
		default:
			continue
		}
		out |= ends
		if sure {
			return out
		}
	}
	return out | returned
}

func chainOf(chains []survey.Chain, from *survey.Chain, name string) *survey.Chain {
	i := slices.IndexFunc(chains, func(c survey.Chain) bool {
		return c.Name == name && c.Table == from.Table && c.Family == from.Family && c.Legacy == from.Legacy
	})
	if i < 0 {
		return nil
	}
	return &chains[i]
}

// matches tells whether the rule matches the packet for certain, and whether it
// may.
func matches(r *survey.Rule, p packet) (sure, possible bool) {
	for _, c := range r.Conditions {
		value := map[survey.Key]string{
			survey.InputLink: p.in, survey.OutputLink: p.out, survey.Family: p.family,
			survey.Transport: p.transport, survey.State: p.state,
		}[c.Key]
		in := slices.ContainsFunc(c.Values, func(v string) bool {
			head, wild := strings.CutSuffix(v, "*")
			return v == value || wild && strings.HasPrefix(value, head) || c.Key == survey.Transport && (v == "0" || v == "all")
		})
		if in == c.Not {
			return false, false
		}
	}
	return !r.Opaque, true
}

// allow returns the command that lets packets between the links pass the
// chain, ahead of everything else in it. An empty out is this host itself; a
// link may end in an asterisk.
func allow(chains []survey.Chain, c survey.Chain, in, out string) string {
	program := map[string]string{"ip": "iptables", "ip6": "ip6tables"}[c.Family]
	if program == "" || c.Table != "filter" || c.Name != strings.ToUpper(c.Hook) {
		words := []string{"nft insert rule", c.Family, c.Table, c.Name, "iifname", quoted(in)}
		if out != "" {
			words = append(words, "oifname", quoted(out))
		}
		return strings.Join(append(words, "accept"), " ")
	}
	if c.Legacy {
		program += "-legacy"
	}
	name := c.Name
	if c.Hook == "forward" && chainOf(chains, &c, "DOCKER-USER") != nil {
		name = "DOCKER-USER" // Docker leaves that one alone when it writes its rules anew
	}
	words := []string{program, "-I", name, "-i", strings.ReplaceAll(in, "*", "+")}
	if out != "" {
		words = append(words, "-o", strings.ReplaceAll(out, "*", "+"))
	}
	return strings.Join(append(words, "-j", "ACCEPT"), " ")
}

// quoted is a link's name for nft(8), which the shell must not expand.
func quoted(link string) string { return `'"` + link + `"'` }
