//go:build ignore

/*
 * The socket lookup program of a segment's namespace. The kernel runs it for
 * every TCP segment and datagram that has no established or connected socket;
 * it answers with our listener where the destination is bound and stays silent
 * otherwise, whereupon the kernel refuses the port as it always does.
 *
 * The few declarations of <linux/bpf.h> that it needs are repeated here, so
 * that the object comes out the same on every machine with the same compiler.
 */

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_SOCKMAP = 15,
};
enum { BPF_F_NO_PREALLOC = 1 };
enum { SK_PASS = 1 };
enum { AF_INET = 2 };
enum { IPPROTO_TCP = 6, IPPROTO_UDP = 17 };

struct bpf_sock;

/* The context as user space declares it: the verifier rewrites each access. */
struct bpf_sk_lookup {
	__u64 sk;
	__u32 family;
	__u32 protocol;
	__u32 remote_ip4;   /* network order */
	__u32 remote_ip6[4];
	__u32 remote_port;  /* network order, upper half zero */
	__u32 local_ip4;    /* network order */
	__u32 local_ip6[4];
	__u32 local_port;   /* host order */
	__u32 ingress_ifindex;
};

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_sk_release)(struct bpf_sock *sk) = (void *)86;
static long (*bpf_sk_assign)(struct bpf_sk_lookup *ctx, struct bpf_sock *sk, __u64 flags) = (void *)124;

/*
 * Keys and values; their Go counterparts are in plan.go. The family is a part
 * of the prefix, so that no IPv6 prefix, however short, holds an IPv4 address.
 */
struct address {
	__u32 bits; /* of family and addr */
	__u32 family;
	__u32 addr[4];
};

struct block {
	__u32 group;
	__u8 transport;
	__u8 index; /* port / 512 */
	__u16 zero;
};

struct bitmap {
	__u64 word[8];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct address);
	__type(value, __u32); /* group */
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} decoynet_addrs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct block);
	__type(value, struct bitmap);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} decoynet_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__type(key, __u32); /* 0 TCP, 1 UDP */
	__type(value, __u64);
	__uint(max_entries, 2);
} decoynet_socks SEC(".maps");

SEC("sk_lookup")
int decoynet_steer(struct bpf_sk_lookup *ctx)
{
	struct address address = { .bits = 160, .family = ctx->family };
	struct block block = {};
	struct bitmap *open;
	struct bpf_sock *sk;
	__u32 port = ctx->local_port & 0xffff;
	__u32 *group, socket;

	if (ctx->protocol == IPPROTO_TCP)
		socket = 0;
	else if (ctx->protocol == IPPROTO_UDP)
		socket = 1;
	else
		return SK_PASS;

	if (ctx->family == AF_INET) {
		address.addr[0] = ctx->local_ip4;
	} else {
		address.addr[0] = ctx->local_ip6[0];
		address.addr[1] = ctx->local_ip6[1];
		address.addr[2] = ctx->local_ip6[2];
		address.addr[3] = ctx->local_ip6[3];
	}
	group = bpf_map_lookup_elem(&decoynet_addrs, &address);
	if (!group)
		return SK_PASS;

	block.group = *group;
	block.transport = ctx->protocol;
	block.index = port >> 9;
	open = bpf_map_lookup_elem(&decoynet_ports, &block);
	if (!open || !(open->word[(port >> 6) & 7] >> (port & 63) & 1))
		return SK_PASS;

	/*
	 * One socket stands for its SO_REUSEPORT group: without
	 * BPF_SK_LOOKUP_F_NO_REUSEPORT the kernel spreads flows over all of it.
	 */
	sk = bpf_map_lookup_elem(&decoynet_socks, &socket);
	if (!sk)
		return SK_PASS;
	bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	return SK_PASS;
}

/* None of the helpers above is reserved to programs under the GPL. */
char _license[] SEC("license") = "Apache-2.0";
