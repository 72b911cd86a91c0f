package link

import "maps"

// sysctls is an ordered list of settings; within one map the order is the
// sorted one. Optional settings may be missing in a kernel.
type sysctls struct {
	must, may map[string]string
}

// forwardingSysctls come first of all: writing ip_forward resets redirects of
// every interface (RFC 1812 against RFC 1122 behaviour, inet_forward_change),
// writing IPv6 forwarding resets that of every interface.
func forwardingSysctls(uplink, ipv6 bool) sysctls {
	on := "0"
	if uplink {
		on = "1"
	}
	s := sysctls{must: map[string]string{"net/ipv4/ip_forward": on}}
	if ipv6 {
		s.must["net/ipv6/conf/all/forwarding"] = on
		s.must["net/ipv6/conf/default/forwarding"] = "0"
	}
	return s
}

// namespaceSysctls are set before any interface is made, which then inherits
// "default". A fresh namespace copies its IPv4 settings from the initial one
// (net.core.devconf_inherit_init_net = 0), so none of them can be presumed.
func namespaceSysctls(ipv6 bool) sysctls {
	s := sysctls{
		must: map[string]string{
			"net/core/somaxconn":           "65535",
			"net/ipv4/tcp_max_syn_backlog": "16384",
		},
		may: map[string]string{
			"net/ipv4/tcp_syncookies": "1", // only with CONFIG_SYN_COOKIES
			// A thousand ICMP messages a second to one address, echo replies (bit 0)
			// among them: by default errors only are limited, to one a second for
			// all decoys together. What all get together is bounded by
			// net.ipv4.icmp_msgs_per_sec, where a namespace has one of its own.
			"net/ipv4/icmp_ratelimit": "1", // milliseconds between two
			"net/ipv4/icmp_ratemask":  "6169",
		},
	}
	if ipv6 {
		s.may["net/ipv6/icmp/ratelimit"] = "1"
		s.may["net/ipv6/icmp/ratemask"] = "0-1,3-127,129" // echo replies are 129
	}
	for _, conf := range []string{"all", "default"} {
		maps.Copy(s.must, interfaceSysctls(conf, ipv6))
	}
	return s
}

// interfaceSysctls make a segment's interface an ordinary host's, and quiet.
func interfaceSysctls(conf string, ipv6 bool) map[string]string {
	v4, v6 := "net/ipv4/conf/"+conf+"/", "net/ipv6/conf/"+conf+"/"
	s := map[string]string{
		// Intruders come from anywhere; the effective value is the maximum of an
		// interface's own and all.
		v4 + "rp_filter": "0",
		// ARP is answered for every local address, AnyIP routes through lo
		// included: arp_ignore >= 1 would want it on the interface itself.
		v4 + "arp_ignore":          "0",
		v4 + "arp_filter":          "0",
		v4 + "arp_announce":        "0",
		v4 + "proxy_arp":           "0",
		v4 + "accept_redirects":    "0",
		v4 + "send_redirects":      "0",
		v4 + "accept_source_route": "0",
		v4 + "route_localnet":      "0",
	}
	if ipv6 {
		// The document says what the segment's routes are, not the LAN.
		s[v6+"accept_ra"] = "0"
		s[v6+"autoconf"] = "0"
		s[v6+"use_tempaddr"] = "0"
		s[v6+"accept_redirects"] = "0"
		s[v6+"disable_ipv6"] = "0"
		// Decoys are addresses of the interface; by default the kernel forgets
		// IPv6 addresses when an interface goes down.
		s[v6+"keep_addr_on_down"] = "1"
	}
	return s
}

// lanSysctls are lan0's own. IPv6 forwards by the setting of "all"; lan0's own
// one decides whether neighbour advertisements carry the router flag (RFC 4861
// section 4.4), and no decoy is a router.
func lanSysctls(ipv6 bool) sysctls {
	s := sysctls{must: interfaceSysctls(LANName, ipv6)}
	if ipv6 {
		s.must["net/ipv6/conf/"+LANName+"/forwarding"] = "0"
	}
	return s
}

// uplinkSysctls are those of either end of the veth pair. Nothing of "all" is
// touched: in the host namespace that is not ours.
func uplinkSysctls(name string, ipv6 bool) sysctls {
	v4, v6 := "net/ipv4/conf/"+name+"/", "net/ipv6/conf/"+name+"/"
	s := sysctls{
		must: map[string]string{
			v4 + "forwarding": "1",
			v4 + "rp_filter":  "0",
			// The check of a source address looks up the way back as if it came
			// from the outgoing link (__fib_validate_source), and from a zone's
			// link everything is delivered locally: a martian source. With this
			// the lookup heeds the packet's mark, which leads back into the
			// segment, also where the host's own all.rp_filter is strict.
			v4 + "src_valid_mark":   "1",
			v4 + "accept_redirects": "0",
			v4 + "send_redirects":   "0",
		},
		may: map[string]string{},
	}
	if ipv6 {
		s.must[v6+"disable_ipv6"] = "0"
		s.must[v6+"addr_gen_mode"] = "1" // none: no address, not even a link-local one
		s.must[v6+"accept_ra"] = "0"
		s.must[v6+"autoconf"] = "0"
		s.must[v6+"accept_redirects"] = "0"
		// Linux 6.17 and later: forward what comes in here though all.forwarding
		// is off.
		s.may[v6+"force_forwarding"] = "1"
	}
	return s
}
