//go:build ignore

/*
 * The two programs that let many decoys behind one macvlan look like many
 * hosts. decoynet_out hangs on the egress of lan0 in the segment's namespace and
 * gives frames the MAC address of the decoy that they are from; decoynet_in
 * hangs on the ingress of the device below and hands frames to such a MAC address
 * to lan0, for a macvlan takes frames by MAC address alone.
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

enum { BPF_MAP_TYPE_LPM_TRIE = 11 };
enum { BPF_F_NO_PREALLOC = 1 };
enum { AF_INET = 2, AF_INET6 = 10 };
enum { TC_ACT_UNSPEC = -1 }; /* the next filter decides */
enum { ETH_P_IP = 0x0800, ETH_P_ARP = 0x0806, ETH_P_IPV6 = 0x86dd };
enum { IPPROTO_ICMPV6 = 58 };
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
};

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_skb_store_bytes)(struct __sk_buff *skb, __u32 at, const void *from, __u32 len, __u64 flags) = (void *)9;
static long (*bpf_l4_csum_replace)(struct __sk_buff *skb, __u32 at, __u64 from, __u64 to, __u64 flags) = (void *)11;
static long (*bpf_skb_load_bytes)(const struct __sk_buff *skb, __u32 at, void *to, __u32 len) = (void *)26;
static __s64 (*bpf_csum_diff)(__u32 *from, __u32 from_size, __u32 *to, __u32 to_size, __u32 seed) = (void *)28;

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

/* None of the helpers above is reserved to programs under the GPL. */
char _license[] SEC("license") = "Apache-2.0";
