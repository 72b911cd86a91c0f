//go:build ignore

/*
 * The programs that let many decoys behind one macvlan look like many hosts.
 * decoynet_out hangs on the egress of lan0 in the segment's namespace and gives
 * frames the MAC address of the decoy that they are from, and packets the marks of
 * its personality; decoynet_in hangs on the ingress of the device below and hands
 * frames to such a MAC address to lan0, for a macvlan takes frames by MAC address
 * alone; decoynet_hear hangs on the ingress of lan0 and sees to what another
 * system would hear otherwise.
 *
 * The few declarations of <linux/bpf.h> that they need are repeated here, so
 * that the object comes out the same on every machine with the same compiler.
 */

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef long long __s64;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
#define inline inline __attribute__((always_inline))
#define htons(x) ((__u16)__builtin_bswap16(x))
#define offsetof(type, member) __builtin_offsetof(type, member)

enum { BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_LPM_TRIE = 11 };
enum { BPF_F_NO_PREALLOC = 1 };
enum { AF_INET = 2, AF_INET6 = 10 };
enum { TC_ACT_UNSPEC = -1 }; /* the next filter decides */
enum { ETH_P_IP = 0x0800, ETH_P_ARP = 0x0806, ETH_P_IPV6 = 0x86dd };
enum { IPPROTO_ICMP = 1, IPPROTO_TCP = 6, IPPROTO_ICMPV6 = 58 };
enum { ICMP_ECHOREPLY = 0 };
enum { TCPOPT_EOL = 0, TCPOPT_NOP = 1, TCPOPT_TIMESTAMP = 8 };
enum { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_ACK = 16, TCP_ECE = 64, TCP_CWR = 128 };
enum { ND_NEIGHBOR_SOLICIT = 135, ND_NEIGHBOR_ADVERT = 136 };
enum { ND_OPT_SOURCE_LINKADDR = 1, ND_OPT_TARGET_LINKADDR = 2 };

/* The context as user space declares it: the verifier rewrites each access. */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
	__u32 napi_id;
	__u32 family;
	__u32 remote_ip4;
	__u32 local_ip4;
	__u32 remote_ip6[4];
	__u32 local_ip6[4];
	__u32 remote_port;
	__u32 local_port;
	__u32 data_meta;
	__u64 flow_keys;
	__u64 tstamp;
	__u32 wire_len;
	__u32 gso_segs;
};

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_skb_store_bytes)(struct __sk_buff *skb, __u32 at, const void *from, __u32 len, __u64 flags) = (void *)9;
static long (*bpf_l3_csum_replace)(struct __sk_buff *skb, __u32 at, __u64 from, __u64 to, __u64 flags) = (void *)10;
static long (*bpf_l4_csum_replace)(struct __sk_buff *skb, __u32 at, __u64 from, __u64 to, __u64 flags) = (void *)11;
static long (*bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;
static long (*bpf_skb_load_bytes)(const struct __sk_buff *skb, __u32 at, void *to, __u32 len) = (void *)26;
static __s64 (*bpf_csum_diff)(__u32 *from, __u32 from_size, __u32 *to, __u32 to_size, __u32 seed) = (void *)28;

static long (*bpf_skb_change_tail)(struct __sk_buff *skb, __u32 len, __u64 flags) = (void *)38;

/* The headers as they are on the wire. */
struct ethernet {
	__u8 dst[6];
	__u8 src[6];
	__u16 type;
};

struct arp {
	__u16 hardware;
	__u16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__u16 operation;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
};

struct ipv4 {
	__u8 version_ihl;
	__u8 tos;
	__u16 len;
	__u16 id;
	__u16 fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 check;
	__u32 src;
	__u32 dst;
};

struct ipv6 {
	__u32 flow;
	__u16 len;
	__u8 next;
	__u8 hops;
	__u32 src[4];
	__u32 dst[4];
};

struct neighbour { /* RFC 4861, solicitation and advertisement */
	__u8 type;
	__u8 code;
	__u16 check;
	__u32 flags;
	__u32 target[4];
};

struct lladdr { /* RFC 4861 section 4.6.1 */
	__u8 type;
	__u8 len; /* in units of eight bytes */
	__u8 mac[6];
};

struct icmp {
	__u8 type;
	__u8 code;
	__u16 check;
};

struct tcp {
	__u16 src;
	__u16 dst;
	__u32 seq;
	__u32 ack;
	__u8 offset; /* of the data, in words, in the upper half */
	__u8 flags;
	__u16 window;
	__u16 check;
	__u16 urgent;
};

#define L3 sizeof(struct ethernet)

/*
 * Keys and values of the map; their Go counterparts are in table.go. The
 * family is a part of the prefix, so that no IPv6 prefix, however short, holds an
 * IPv4 address.
 */
struct address {
	__u32 bits; /* of family and addr */
	__u32 family;
	__u32 addr[4];
};

enum { NONE, LINUX, WINDOWS }; /* personalities */

struct policy {
	__u8 oui[3];
	__u8 has_mac;
	__u32 personality;
	__u32 key[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct address);
	__type(value, struct policy);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} decoynet_looks SEC(".maps");

/*
 * Where Windows stands in numbering its packets. Each decoy has a count, which it
 * shares with those whose addresses differ by a multiple of COUNTS.
 */
#define COUNTS 4096

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, COUNTS);
} decoynet_sent SEC(".maps");

/* The MAC address of lan0; set before loading. */
volatile const __u8 decoynet_lan[6];

static inline struct policy *policy_of4(__u32 addr)
{
	struct address address = { .bits = 64, .family = AF_INET, .addr = { addr } };

	return bpf_map_lookup_elem(&decoynet_looks, &address);
}

static inline struct policy *policy_of6(const __u32 *addr)
{
	struct address address = {
		.bits = 160, .family = AF_INET6, .addr = { addr[0], addr[1], addr[2], addr[3] },
	};

	return bpf_map_lookup_elem(&decoynet_looks, &address);
}

/*
 * The MAC address of a decoy: the vendor's prefix, then the last 24 bits of the
 * IP address through a keyed permutation, a Feistel network with halves of 12
 * bits. So no two addresses that differ there share a MAC address, and nothing
 * has to be remembered of any of them. The same in Go: Policy.MAC.
 */
static inline void mac_of(const struct policy *p, __u32 last, __u8 *mac)
{
	__u32 addr = __builtin_bswap32(last) & 0xffffff;
	__u32 left = addr >> 12, right = addr & 0xfff, mixed;
	int i;

#pragma unroll
	for (i = 0; i < 4; i++) {
		mixed = (right + p->key[i]) * 0x9e3779b1;
		mixed ^= mixed >> 15;
		mixed *= 0x85ebca77;
		mixed = left ^ (mixed >> 20);
		left = right;
		right = mixed;
	}
	addr = left << 12 | right;
	mac[0] = p->oui[0];
	mac[1] = p->oui[1];
	mac[2] = p->oui[2];
	mac[3] = addr >> 16;
	mac[4] = addr >> 8;
	mac[5] = addr;
}

static inline void set_source(struct __sk_buff *skb, const __u8 *mac)
{
	bpf_skb_store_bytes(skb, offsetof(struct ethernet, src), mac, 6, 0);
}

static inline int ether_arp(const struct arp *arp)
{
	return arp->hardware == htons(1) && arp->protocol == htons(ETH_P_IP) && arp->hardware_len == 6 &&
	       arp->protocol_len == 4;
}

static inline __u32 word(const __u8 *bytes)
{
	__u32 w;

	__builtin_memcpy(&w, bytes, 4);
	return w;
}

/* A probe (RFC 5227) has no sender yet: it is from who will have the address. */
static inline void out_arp(struct __sk_buff *skb)
{
	struct policy *p;
	struct arp arp;
	__u8 mac[6];
	__u32 sender;

	if (bpf_skb_load_bytes(skb, L3, &arp, sizeof(arp)) || !ether_arp(&arp))
		return;
	sender = word(arp.sender);
	if (!sender)
		sender = word(arp.target);
	p = policy_of4(sender);
	if (!p || !p->has_mac)
		return;
	mac_of(p, sender, mac);
	bpf_skb_store_bytes(skb, L3 + offsetof(struct arp, sender_mac), mac, 6, 0);
	set_source(skb, mac);
}

/*
 * Personalities. Only what keeps a connection correct is changed. A peer may be
 * told of less room than there is, never of more: the window of a SYN-ACK and the
 * window scale are lowered only, and the namespace's buffers make the kernel offer
 * about what the personality does (see offerWindow). Windows is that of build 1709 and
 * later, which has no timestamps; see decline_timestamps.
 */
#define WINDOWS_SCALE 8
#define WINDOWS_WINDOW 65392 /* without a window scale: 122 segments of 536 */
#define LINUX_SCALE 7
#define LINUX_WINDOW 64240    /* 44 segments of 1460 */
#define LINUX_WINDOW_TS 65160 /* 45 of 1448: with timestamps */

static inline __u8 ttl_of(const struct policy *p)
{
	return p->personality == WINDOWS ? 128 : 64;
}

/* Windows counts all packets it sends, whatever the protocol and the peer. */
static inline __u16 next_id(struct __sk_buff *skb, __u32 src)
{
	__u32 addr = __builtin_bswap32(src), slot = addr & (COUNTS - 1);
	__u32 segments = skb->gso_segs ? skb->gso_segs : 1;
	__u32 *sent = bpf_map_lookup_elem(&decoynet_sent, &slot);

	if (!sent)
		return 0;
	__sync_fetch_and_add(sent, segments);
	return htons((__u16)(*sent - segments + (addr * 0x9e3779b1 >> 16)));
}

/*
 * Of the same options, Linux puts the window scale last and Windows second:
 *
 *	Linux    MSS, NOP, NOP, SACK, NOP, scale
 *	Windows  MSS, NOP, scale, NOP, NOP, SACK
 *
 * Whole words change places, so the checksum stays. With timestamps, which a
 * service on the kernel path may agree to, three words lie between.
 */
static inline int scale_last(const __u8 *word)
{
	return word[0] == 1 && word[1] == 3 && word[2] == 3;
}

static inline void lower_scale(struct __sk_buff *skb, __u32 tcp, __u8 *word, __u8 most)
{
	__u32 old, new;

	__builtin_memcpy(&old, word, 4);
	if (word[3] <= most)
		return;
	word[3] = most;
	__builtin_memcpy(&new, word, 4);
	bpf_l4_csum_replace(skb, tcp + offsetof(struct tcp, check), old, new, 4);
}

/* Tells whether there is a window scale. */
static inline int out_synack_options(struct __sk_buff *skb, const struct policy *p, __u32 tcp, __u32 len)
{
	const __u32 at = tcp + sizeof(struct tcp);
	__u8 option[12], scale[4];

	if (len != 8 && len != 12 && len != 20)
		return 0;
	if (bpf_skb_load_bytes(skb, at + len - 4, scale, 4))
		return 0;
	if (!scale_last(scale)) /* a service on the kernel path may be Windows itself */
		return !bpf_skb_load_bytes(skb, at + 4, scale, 4) && scale_last(scale);
	lower_scale(skb, tcp, scale, p->personality == WINDOWS ? WINDOWS_SCALE : LINUX_SCALE);
	if (p->personality != WINDOWS) {
		bpf_skb_store_bytes(skb, at + len - 4, scale, 4, 0);
		return 1;
	}
	if (len == 20 && !bpf_skb_load_bytes(skb, at + 4, option, 12))
		bpf_skb_store_bytes(skb, at + 8, option, 12, 0);
	else if (len == 12 && !bpf_skb_load_bytes(skb, at + 4, option, 4))
		bpf_skb_store_bytes(skb, at + 8, option, 4, 0);
	bpf_skb_store_bytes(skb, at + 4, scale, 4, 0);
	return 1;
}

static inline void lower_window(struct __sk_buff *skb, __u32 at, const struct tcp *tcp, __u16 most)
{
	__u16 window = htons(most);

	if (htons(tcp->window) <= most)
		return;
	bpf_l4_csum_replace(skb, at + offsetof(struct tcp, check), tcp->window, window, 2);
	bpf_skb_store_bytes(skb, at + offsetof(struct tcp, window), &window, 2, 0);
}

static inline void out_tcp(struct __sk_buff *skb, const struct policy *p, __u32 at)
{
	struct tcp tcp;
	__u32 options;

	if (bpf_skb_load_bytes(skb, at, &tcp, sizeof(tcp)))
		return;
	if ((tcp.flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK)) {
		options = (tcp.offset >> 4) * 4 - sizeof(tcp);
		if (p->personality == WINDOWS) {
			if (!out_synack_options(skb, p, at, options))
				lower_window(skb, at, &tcp, WINDOWS_WINDOW);
		} else {
			out_synack_options(skb, p, at, options);
			lower_window(skb, at, &tcp, options >= 16 ? LINUX_WINDOW_TS : LINUX_WINDOW);
		}
	} else if (p->personality == WINDOWS && (tcp.flags & (TCP_RST | TCP_ACK)) == TCP_RST) {
		/* Nobody looks at it without the ACK flag; Linux leaves it zero. */
		bpf_l4_csum_replace(skb, at + offsetof(struct tcp, check), tcp.ack, tcp.seq, 4);
		bpf_skb_store_bytes(skb, at + offsetof(struct tcp, ack), &tcp.seq, 4, 0);
	}
}

/* Windows answers every echo request with code 0, Linux with that of the request. */
static inline void out_icmp(struct __sk_buff *skb, const struct policy *p, __u32 at)
{
	struct icmp icmp, was;

	if (p->personality != WINDOWS || bpf_skb_load_bytes(skb, at, &was, sizeof(was)))
		return;
	if (was.type != ICMP_ECHOREPLY || !was.code)
		return;
	icmp = was;
	icmp.code = 0;
	bpf_l4_csum_replace(skb, at + offsetof(struct icmp, check), *(__u16 *)&was, *(__u16 *)&icmp, 2);
	bpf_skb_store_bytes(skb, at, &icmp, 2, 0);
}

static inline void out_personality4(struct __sk_buff *skb, const struct policy *p, struct ipv4 *ip)
{
	const __u32 at = L3 + (ip->version_ihl & 15) * 4;
	struct ipv4 was = *ip;
	__s64 diff;

	ip->ttl = ttl_of(p);
	if (p->personality == WINDOWS) {
		if (!(ip->fragment & htons(0x3fff)))
			ip->id = next_id(skb, ip->src);
		if (ip->protocol == IPPROTO_ICMP)
			ip->tos = 0;
	}
	diff = bpf_csum_diff((__u32 *)&was, sizeof(was), (__u32 *)ip, sizeof(was), 0);
	bpf_skb_store_bytes(skb, L3, ip, sizeof(was), 0);
	bpf_l3_csum_replace(skb, L3 + offsetof(struct ipv4, check), 0, diff, 0);
	if (ip->fragment & htons(0x1fff))
		return;
	if (ip->protocol == IPPROTO_TCP)
		out_tcp(skb, p, at);
	else if (ip->protocol == IPPROTO_ICMP)
		out_icmp(skb, p, at);
}

static inline void out_ipv4(struct __sk_buff *skb)
{
	struct policy *p;
	struct ipv4 ip;
	__u8 mac[6];

	if (bpf_skb_load_bytes(skb, L3, &ip, sizeof(ip)))
		return;
	p = policy_of4(ip.src);
	if (!p)
		return;
	if (p->has_mac) {
		mac_of(p, ip.src, mac);
		set_source(skb, mac);
	}
	if (p->personality != NONE)
		out_personality4(skb, p, &ip);
}

/* The link-layer address in a solicitation or advertisement is its first option. */
static inline void set_lladdr(struct __sk_buff *skb, __u8 type, const __u8 *mac)
{
	const __u32 at = L3 + sizeof(struct ipv6) + sizeof(struct neighbour);
	struct lladdr old, new;
	__s64 diff;

	if (bpf_skb_load_bytes(skb, at, &old, sizeof(old)) || old.type != type || old.len != 1)
		return;
	new = old;
	__builtin_memcpy(new.mac, mac, 6);
	diff = bpf_csum_diff((__u32 *)&old, sizeof(old), (__u32 *)&new, sizeof(new), 0);
	bpf_skb_store_bytes(skb, at, &new, sizeof(new), 0);
	bpf_l4_csum_replace(skb, L3 + sizeof(struct ipv6) + offsetof(struct neighbour, check), 0, diff, 0);
}

/*
 * An advertisement is about its target; a solicitation comes from its source, or
 * in duplicate address detection, which has none, from who will have the target.
 */
static inline void out_ipv6(struct __sk_buff *skb)
{
	struct neighbour nd = {};
	__u8 mac[6], option = 0;
	struct policy *p;
	struct ipv6 ip;

	if (bpf_skb_load_bytes(skb, L3, &ip, sizeof(ip)))
		return;
	if (ip.next == IPPROTO_ICMPV6 && !bpf_skb_load_bytes(skb, L3 + sizeof(ip), &nd, sizeof(nd))) {
		if (nd.type == ND_NEIGHBOR_ADVERT)
			option = ND_OPT_TARGET_LINKADDR;
		else if (nd.type == ND_NEIGHBOR_SOLICIT)
			option = ND_OPT_SOURCE_LINKADDR;
		if (option == ND_OPT_TARGET_LINKADDR ||
		    (option && !(ip.src[0] | ip.src[1] | ip.src[2] | ip.src[3])))
			__builtin_memcpy(ip.src, nd.target, sizeof(ip.src));
	}
	p = policy_of6(ip.src);
	if (!p)
		return;
	if (p->has_mac) {
		mac_of(p, ip.src[3], mac);
		if (option)
			set_lladdr(skb, option, mac);
		set_source(skb, mac);
	}
	/* Neighbour discovery is only heard with 255 (RFC 4861 section 7.1). */
	if (p->personality == NONE || ip.hops == 255)
		return;
	ip.hops = ttl_of(p);
	bpf_skb_store_bytes(skb, L3 + offsetof(struct ipv6, hops), &ip.hops, 1, 0);
	if (ip.next == IPPROTO_TCP)
		out_tcp(skb, p, L3 + sizeof(ip));
}

SEC("tc")
int decoynet_out(struct __sk_buff *skb)
{
	struct ethernet eth;

	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return TC_ACT_UNSPEC;
	if (eth.type == htons(ETH_P_IP))
		out_ipv4(skb);
	else if (eth.type == htons(ETH_P_IPV6))
		out_ipv6(skb);
	else if (eth.type == htons(ETH_P_ARP))
		out_arp(skb);
	return TC_ACT_UNSPEC;
}

/*
 * The decoy that a unicast frame is for, and the last word of its address. An
 * answer to an ARP probe names nobody as its target (RFC 5227 section 2.1.1): it
 * is for the decoy whose address its sender has.
 */
static inline struct policy *recipient(struct __sk_buff *skb, __u16 type, __u32 *last)
{
	struct ipv4 ip4;
	struct ipv6 ip6;
	struct arp arp;

	if (type == htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, L3, &ip4, sizeof(ip4)))
			return 0;
		*last = ip4.dst;
		return policy_of4(*last);
	}
	if (type == htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, L3, &ip6, sizeof(ip6)))
			return 0;
		*last = ip6.dst[3];
		return policy_of6(ip6.dst);
	}
	if (type == htons(ETH_P_ARP)) {
		if (bpf_skb_load_bytes(skb, L3, &arp, sizeof(arp)) || !ether_arp(&arp))
			return 0;
		*last = word(arp.target);
		if (!*last)
			*last = word(arp.sender);
		return policy_of4(*last);
	}
	return 0;
}

/*
 * Frames with a VLAN tag are none of this segment's: where it has one, the
 * kernel took the tag off before the frame came to the segment's device.
 */
SEC("tc")
int decoynet_in(struct __sk_buff *skb)
{
	struct ethernet eth;
	struct policy *p;
	__u8 mac[6], lan[6];
	__u32 last;
	int i;

	if (skb->vlan_present || bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) || eth.dst[0] & 1)
		return TC_ACT_UNSPEC;
	p = recipient(skb, eth.type, &last);
	if (!p || !p->has_mac)
		return TC_ACT_UNSPEC;
	mac_of(p, last, mac);
	for (i = 0; i < 6; i++) {
		if (mac[i] != eth.dst[i])
			return TC_ACT_UNSPEC;
		lan[i] = decoynet_lan[i];
	}
	bpf_skb_store_bytes(skb, offsetof(struct ethernet, dst), lan, 6, 0);
	return TC_ACT_UNSPEC;
}

/* Windows does not agree to congestion notification unless it is told to. */
static inline void decline_ecn(struct __sk_buff *skb, __u32 at, const struct tcp *was)
{
	struct tcp tcp = *was;

	tcp.flags &= ~(TCP_ECE | TCP_CWR);
	bpf_l4_csum_replace(skb, at + offsetof(struct tcp, check), *(__u16 *)&was->offset, *(__u16 *)&tcp.offset, 2);
	bpf_skb_store_bytes(skb, at + offsetof(struct tcp, flags), &tcp.flags, 1, 0);
}

/*
 * Where in a TCP header of so many bytes the timestamps are, or 0. A global
 * function is verified by itself, once, and not for each way out of its loop.
 */
__attribute__((noinline)) int decoynet_timestamps(struct __sk_buff *skb, __u32 tcp, __u32 end)
{
	struct { __u8 kind, len; } option;
	__u32 pos = sizeof(struct tcp);
	int i;

	for (i = 0; i < 40; i++) {
		if (pos + 10 > end || bpf_skb_load_bytes(skb, tcp + pos, &option, sizeof(option)))
			return 0;
		if (option.kind == TCPOPT_NOP) {
			pos++;
			continue;
		}
		if (option.kind == TCPOPT_TIMESTAMP && option.len == 10)
			return pos;
		if (option.kind == TCPOPT_EOL || option.len < 2)
			return 0;
		pos += option.len;
	}
	return 0;
}

/*
 * Takes the timestamps out of a SYN, so that they are never agreed on, by putting
 * NOPs in their place. The checksum wants an even beginning and whole words: so
 * up to two bytes before the option belong to the piece.
 */
static inline void decline_timestamps(struct __sk_buff *skb, __u32 at, const struct tcp *tcp)
{
	__u32 pos = decoynet_timestamps(skb, at, (tcp->offset >> 4) * 4);
	__u8 old[12], new[12];
	__s64 diff;

	if (!pos)
		return;
	__builtin_memset(new, TCPOPT_NOP, sizeof(new));
	pos -= pos & 1 ? 1 : 2;
	if (bpf_skb_load_bytes(skb, at + pos, old, sizeof(old)))
		return;
	new[0] = old[0];
	if (old[1] == TCPOPT_TIMESTAMP && old[2] == 10)
		new[11] = old[11];
	else
		new[1] = old[1];
	diff = bpf_csum_diff((__u32 *)old, sizeof(old), (__u32 *)new, sizeof(new), 0);
	bpf_l4_csum_replace(skb, at + offsetof(struct tcp, check), 0, diff, 0);
	bpf_skb_store_bytes(skb, at + pos, new, sizeof(new), 0);
}

static inline __u16 fold(__s64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/*
 * A segment that opens nothing and belongs to nothing: Linux drops it at an open
 * port, Windows refuses it there as at a closed one (RFC 9293 section 3.10.7.2,
 * with the acknowledgement of section 3.5.2). The frame itself becomes the answer;
 * decoynet_out gives it the rest.
 */
static inline int refuse(struct __sk_buff *skb, const struct ethernet *asked, const struct ipv4 *ip, const struct tcp *tcp)
{
	struct answer {
		struct ethernet eth;
		struct ipv4 ip;
		struct tcp tcp;
	} __attribute__((packed)) a = {};
	struct { __u32 src, dst; __u8 zero, protocol; __u16 len; } pseudo = {};
	__u32 data = htons(ip->len) - sizeof(*ip) - (tcp->offset >> 4) * 4;
	struct ipv4 head = {
		.version_ihl = 0x45, .len = htons(sizeof(*ip) + sizeof(*tcp)), .fragment = htons(0x4000), .ttl = 128,
		.protocol = IPPROTO_TCP, .src = ip->dst, .dst = ip->src,
	};
	struct tcp rst = {
		.src = tcp->dst, .dst = tcp->src, .offset = sizeof(*tcp) / 4 << 4, .flags = TCP_RST | TCP_ACK,
	};

	rst.ack = __builtin_bswap32(__builtin_bswap32(tcp->seq) + data + !!(tcp->flags & TCP_SYN) + !!(tcp->flags & TCP_FIN));
	head.check = fold(bpf_csum_diff(0, 0, (__u32 *)&head, sizeof(head), 0));
	pseudo.src = head.src;
	pseudo.dst = head.dst;
	pseudo.protocol = IPPROTO_TCP;
	pseudo.len = htons(sizeof(rst));
	rst.check = fold(bpf_csum_diff(0, 0, (__u32 *)&rst, sizeof(rst),
				       bpf_csum_diff(0, 0, (__u32 *)&pseudo, sizeof(pseudo), 0)));
	__builtin_memcpy(a.eth.dst, asked->src, 6);
	__builtin_memcpy(a.eth.src, asked->dst, 6);
	a.eth.type = htons(ETH_P_IP);
	a.ip = head;
	a.tcp = rst;
	if (bpf_skb_change_tail(skb, sizeof(a), 0) || bpf_skb_store_bytes(skb, 0, &a, sizeof(a), 0))
		return TC_ACT_UNSPEC;
	return bpf_redirect(skb->ifindex, 0);
}

SEC("tc")
int decoynet_hear(struct __sk_buff *skb)
{
	struct ethernet eth;
	struct policy *p;
	struct ipv4 ip4;
	struct ipv6 ip6;
	struct tcp tcp;
	__u32 at;

	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return TC_ACT_UNSPEC;
	if (eth.type == htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, L3, &ip4, sizeof(ip4)) || ip4.protocol != IPPROTO_TCP || ip4.fragment & htons(0x3fff))
			return TC_ACT_UNSPEC;
		p = policy_of4(ip4.dst);
		at = L3 + (ip4.version_ihl & 15) * 4;
	} else if (eth.type == htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, L3, &ip6, sizeof(ip6)) || ip6.next != IPPROTO_TCP)
			return TC_ACT_UNSPEC;
		p = policy_of6(ip6.dst);
		at = L3 + sizeof(ip6);
	} else {
		return TC_ACT_UNSPEC;
	}
	if (!p || p->personality != WINDOWS || bpf_skb_load_bytes(skb, at, &tcp, sizeof(tcp)))
		return TC_ACT_UNSPEC;
	if ((tcp.flags & (TCP_SYN | TCP_ACK | TCP_ECE)) == (TCP_SYN | TCP_ECE))
		decline_ecn(skb, at, &tcp);
	if ((tcp.flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		decline_timestamps(skb, at, &tcp);
	if (eth.type == htons(ETH_P_IP) && at == L3 + sizeof(ip4) && !(tcp.flags & (TCP_ACK | TCP_RST)) &&
	    (!(tcp.flags & TCP_SYN) || tcp.flags & TCP_FIN))
		return refuse(skb, &eth, &ip4, &tcp);
	return TC_ACT_UNSPEC;
}

/* None of the helpers above is reserved to programs under the GPL. */
char _license[] SEC("license") = "Apache-2.0";
