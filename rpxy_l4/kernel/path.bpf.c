// SPDX-License-Identifier: MIT
//
// The kernel path: at tc ingress, packets of flows that user space has decided are rewritten and sent on their way.
// Whatever is unusual about a packet is left to the sockets below, which serve the same flow.
//
// User space makes the maps and fills them; the structures stand once more in layout.py, and a test compares the two.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// One direction of a flow, as its packets arrive. An IPv4 address is the first word, and the others are 0.
struct flow_key {
    __be32 source[4];
    __be32 destination[4];
    __be16 source_port;
    __be16 destination_port;
    __u8 protocol;
    __u8 family; // 4 or 6
    __u16 zero;
};

#define FLOW_TO_LOCAL 1    // The destination is a socket of this machine.
#define FLOW_FROM_CLIENT 2 // This direction.

// What they become.
struct flow {
    __be32 source[4];
    __be32 destination[4];
    __be16 source_port;
    __be16 destination_port;
    __u32 interface; // Where they leave.
    __u32 counter;   // Index; that of the other direction is counter ^ 1.
    __u16 mtu;       // Of the way there; 0 is any length.
    __u16 flags;
    __u32 address_change; // What the addresses and the ports add to a sum over them (RFC 1071), in the order of bytes
    __u32 port_change;    // that this machine has.
};

// What has passed in one direction. User space has this memory mapped.
struct counter {
    __u64 packets; // As they are on the wire, not as they are joined in memory.
    __u64 bytes;   // Payload.
    __u64 last;    // When, CLOCK_MONOTONIC in nanoseconds.
    __u64 proof;   // See below.
    __u64 of_user_space[4]; // A cache line each: the directions are often served by different processors.
};

// What the sockets see need not be what is on the wire: this host may translate addresses (NAT) before or behind them.
// So nothing is forwarded before a packet of each direction has arrived as it is expected here.
enum proof {
    PROOF_NONE,
    PROOF_OF_THIS,
    PROOF_OF_BOTH,
};

// Why a packet of a flow is left to the sockets. In the order of Why in layout.py.
enum why {
    WHY_FRAGMENT,
    WHY_OPTIONS,
    WHY_HOP_LIMIT,
    WHY_TOO_BIG,
    WHY_AFTER_PAUSE,
    WHY_MALFORMED,
    WHY_UNPROVEN,
    WHY_FAULT,
    WHY_BROKEN,
    WHY_COUNT,
};

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __type(key, struct flow_key);
    __type(value, struct flow);
    __uint(max_entries, 1); // User space decides.
    __uint(map_flags, BPF_F_NO_PREALLOC);
} flows SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __type(key, __u32);
    __type(value, struct counter);
    __uint(max_entries, 2); // User space decides.
    __uint(map_flags, BPF_F_MMAPABLE);
} counters SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __type(key, __u32);
    __type(value, __u64);
    __uint(max_entries, WHY_COUNT);
} left SEC(".maps");

// After so long without a packet, user space looks at what a client sends: its port may be another program's by now.
// The same as _QUIET_SECONDS in workers/udp.py.
#define QUIET_NANOSECONDS 5000000000LL

// RFC 791: where a fragment belongs, and that there are more.
#define IP_OFFSET 0x1fff
#define IP_MORE 0x2000
#define IP_WORDS_WITHOUT_OPTIONS 5

// RFC 1191: a packet was too big, and how long it may be. linux/icmp.h wants headers that BPF has not.
struct icmp_too_big {
    __u8 type;
    __u8 code;
    __be16 checksum;
    __be16 unused;
    __be16 mtu;
};

#define ICMP_UNREACHABLE 3
#define ICMP_TOO_BIG 4

// RFC 4443 section 3.2.
struct icmpv6_too_big {
    __u8 type;
    __u8 code;
    __be16 checksum;
    __be32 mtu;
};

#define ICMPV6_TOO_BIG 2

// Every path takes packets of this length (RFC 791, RFC 8200 section 5), so less is not believed.
#define LEAST_MTU_IPV4 576
#define LEAST_MTU_IPV6 1280

// Have the programs behind this one look at the packet, and then the sockets.
#define LEAVE TC_ACT_UNSPEC

static __always_inline int leave(enum why why)
{
    __u32 index = why;
    __u64 *count = bpf_map_lookup_elem(&left, &index);

    if (count)
        *count += 1;
    return LEAVE;
}

static __always_inline struct counter *counter_of(__u32 index)
{
    return bpf_map_lookup_elem(&counters, &index);
}

// Where things are in the packet, and what it is.
struct packet {
    struct flow_key key;
    __u32 network;   // Offset of the network header,
    __u32 transport; // and of the transport header.
    __u32 length;    // From there on, as the network header says.
    __u32 payload;   // Bytes.
    __u8 hop_limit;
    __u8 has_options;
    __u8 is_fragment;
    __u8 is_malformed;
};

static __always_inline int read_ipv4(struct __sk_buff *skb, struct packet *packet)
{
    struct iphdr ip;

    if (bpf_skb_load_bytes(skb, packet->network, &ip, sizeof(ip)))
        return -1;
    // Of a fragment, only the first has ports.
    if (ip.version != 4 || ip.protocol != IPPROTO_UDP || ip.frag_off & bpf_htons(IP_OFFSET))
        return -1;
    packet->key.source[0] = ip.saddr;
    packet->key.destination[0] = ip.daddr;
    packet->key.family = 4;
    packet->hop_limit = ip.ttl;
    packet->has_options = ip.ihl != IP_WORDS_WITHOUT_OPTIONS;
    packet->is_fragment = (ip.frag_off & bpf_htons(IP_MORE)) != 0;
    packet->transport = packet->network + ip.ihl * 4;
    packet->length = bpf_ntohs(ip.tot_len) - ip.ihl * 4;
    return 0;
}

static __always_inline int read_ipv6(struct __sk_buff *skb, struct packet *packet)
{
    struct ipv6hdr ip;

    if (bpf_skb_load_bytes(skb, packet->network, &ip, sizeof(ip)))
        return -1;
    // Fragments and options have headers of their own in between: such a packet is none of ours.
    if (ip.version != 6 || ip.nexthdr != IPPROTO_UDP)
        return -1;
    __builtin_memcpy(packet->key.source, &ip.saddr, sizeof(ip.saddr));
    __builtin_memcpy(packet->key.destination, &ip.daddr, sizeof(ip.daddr));
    packet->key.family = 6;
    packet->hop_limit = ip.hop_limit;
    packet->transport = packet->network + sizeof(ip);
    packet->length = bpf_ntohs(ip.payload_len);
    return 0;
}

static __always_inline int read_packet(struct __sk_buff *skb, __u32 network, struct packet *packet)
{
    struct udphdr udp;
    __u32 room;

    packet->network = network;
    packet->key.protocol = IPPROTO_UDP;
    if (skb->protocol == bpf_htons(ETH_P_IP)) {
        if (read_ipv4(skb, packet))
            return -1;
    } else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
        if (read_ipv6(skb, packet))
            return -1;
    } else {
        return -1;
    }
    if (bpf_skb_load_bytes(skb, packet->transport, &udp, sizeof(udp)))
        return -1;
    packet->key.source_port = udp.source;
    packet->key.destination_port = udp.dest;
    room = skb->len - packet->transport - sizeof(udp);
    if (skb->gso_size) {
        packet->payload = room;
    } else {
        // Behind a short datagram, the frame may be filled up.
        packet->payload = bpf_ntohs(udp.len) - sizeof(udp);
        packet->is_malformed =
            bpf_ntohs(udp.len) < sizeof(udp) || bpf_ntohs(udp.len) != packet->length || packet->payload > room;
    }
    return 0;
}

#define REWRITTEN -1

static __always_inline __u16 fold(__u32 sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return sum + (sum >> 16);
}

// Change addresses, ports, hop limit and checksums (RFC 1624). Only the first step can fail before anything is changed:
// it makes all the headers writable.
static __always_inline int rewrite(struct __sk_buff *skb, __u32 network, const struct packet *packet,
                                   const struct flow *flow, int hop)
{
    __u32 is_ipv4 = packet->key.family == 4;
    __u32 transport = network + (is_ipv4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
    __u32 checksum = transport + offsetof(struct udphdr, check);
    __u64 flags = BPF_F_MARK_MANGLED_0;
    void *start, *end;

    // A device, or the sender on this machine, may have left the transport's checksum to be finished: the helper knows.
    if (bpf_l4_csum_replace(skb, checksum, 0, flow->address_change, flags | BPF_F_PSEUDO_HDR))
        return WHY_FAULT;
    if (bpf_l4_csum_replace(skb, checksum, 0, flow->port_change, flags))
        return WHY_BROKEN;
    if (is_ipv4) {
        struct iphdr *ip;
        struct udphdr *udp;
        __u32 sum;

        start = (void *)(long)skb->data;
        end = (void *)(long)skb->data_end;
        ip = start + network;
        udp = (void *)(ip + 1);
        if ((void *)(udp + 1) > end)
            return WHY_BROKEN;
        ip->saddr = flow->source[0];
        ip->daddr = flow->destination[0];
        udp->source = flow->source_port;
        udp->dest = flow->destination_port;
        sum = (__u16)~ip->check + fold(flow->address_change);
        if (hop) {
            sum += (__u16)~bpf_htons(0x0100);
            ip->ttl -= 1;
        }
        ip->check = ~fold(sum);
    } else {
        struct ipv6hdr *ip;
        struct udphdr *udp;

        // The checksum that a device has taken of the whole packet stays as it is: no header checksum changes with the
        // addresses, and the transport's makes up for them. The helper above assumes IPv4 and has changed it.
        bpf_csum_update(skb, flow->address_change);
        if (hop) {
            __u8 after = packet->hop_limit - 1;

            if (bpf_skb_store_bytes(skb, network + offsetof(struct ipv6hdr, hop_limit), &after, sizeof(after),
                                    BPF_F_RECOMPUTE_CSUM))
                return WHY_BROKEN;
        }
        start = (void *)(long)skb->data;
        end = (void *)(long)skb->data_end;
        ip = start + network;
        udp = (void *)(ip + 1);
        if ((void *)(udp + 1) > end)
            return WHY_BROKEN;
        __builtin_memcpy(&ip->saddr, flow->source, sizeof(flow->source));
        __builtin_memcpy(&ip->daddr, flow->destination, sizeof(flow->destination));
        udp->source = flow->source_port;
        udp->dest = flow->destination_port;
    }
    return REWRITTEN;
}

// Note that packets may be no longer than this from now on, of the direction that "answers" are the answers to. The ports
// are those of a packet of that direction.
static __always_inline void shorten(struct flow_key *answers, __be16 source_port, __be16 destination_port, __u32 mtu,
                                    __u32 least)
{
    struct flow_key key = {.protocol = IPPROTO_UDP, .family = answers->family};
    struct flow *back, *flow;

    answers->protocol = IPPROTO_UDP;
    answers->source_port = destination_port;
    answers->destination_port = source_port;
    back = bpf_map_lookup_elem(&flows, answers);
    mtu = mtu < least ? least : mtu > 0xffff ? 0xffff : mtu;
    if (!back)
        return;
    // What comes the other way becomes a packet between the same two hosts as this direction's are before.
    __builtin_memcpy(key.source, back->destination, sizeof(key.source));
    __builtin_memcpy(key.destination, back->source, sizeof(key.destination));
    key.source_port = back->destination_port;
    key.destination_port = back->source_port;
    flow = bpf_map_lookup_elem(&flows, &key);
    if (flow && (!flow->mtu || mtu < flow->mtu))
        flow->mtu = mtu;
}

// A router says that a packet of ours was too big. That goes on to the sockets: the kernel learns the
// same from it, and cuts what user space sends.
static __always_inline void read_icmp(struct __sk_buff *skb, __u32 network)
{
    struct iphdr outer;
    struct {
        struct icmp_too_big icmp;
        struct iphdr ip;
        __be16 source, destination;
    } error;
    struct flow_key key = {.family = 4};

    if (bpf_skb_load_bytes(skb, network, &outer, sizeof(outer)) || outer.protocol != IPPROTO_ICMP)
        return;
    if (bpf_skb_load_bytes(skb, network + outer.ihl * 4, &error, sizeof(error)))
        return;
    if (error.icmp.type != ICMP_UNREACHABLE || error.icmp.code != ICMP_TOO_BIG)
        return;
    if (error.ip.protocol != IPPROTO_UDP || error.ip.ihl != IP_WORDS_WITHOUT_OPTIONS)
        return;
    key.source[0] = error.ip.daddr;
    key.destination[0] = error.ip.saddr;
    shorten(&key, error.source, error.destination, bpf_ntohs(error.icmp.mtu), LEAST_MTU_IPV4);
}

// The same.
static __always_inline void read_icmpv6(struct __sk_buff *skb, __u32 network)
{
    struct ipv6hdr outer;
    struct {
        struct icmpv6_too_big icmp;
        struct ipv6hdr ip;
        __be16 source, destination;
    } error;
    struct flow_key key = {.family = 6};

    if (bpf_skb_load_bytes(skb, network, &outer, sizeof(outer)) || outer.nexthdr != IPPROTO_ICMPV6)
        return;
    if (bpf_skb_load_bytes(skb, network + sizeof(outer), &error, sizeof(error)))
        return;
    if (error.icmp.type != ICMPV6_TOO_BIG || error.ip.nexthdr != IPPROTO_UDP)
        return;
    __builtin_memcpy(key.source, &error.ip.daddr, sizeof(key.source));
    __builtin_memcpy(key.destination, &error.ip.saddr, sizeof(key.destination));
    shorten(&key, error.source, error.destination, bpf_ntohl(error.icmp.mtu), LEAST_MTU_IPV6);
}

static __always_inline int read_error(struct __sk_buff *skb, __u32 network)
{
    if (skb->protocol == bpf_htons(ETH_P_IP))
        read_icmp(skb, network);
    else if (skb->protocol == bpf_htons(ETH_P_IPV6))
        read_icmpv6(skb, network);
    return LEAVE;
}

// Whether both directions have been seen, this packet included.
static __always_inline int is_proven(struct counter *counter, __u32 index)
{
    struct counter *other;

    if (counter->proof == PROOF_OF_BOTH)
        return 1;
    counter->proof = PROOF_OF_THIS;
    other = counter_of(index ^ 1);
    if (!other || other->proof == PROOF_NONE)
        return 0;
    counter->proof = PROOF_OF_BOTH;
    return 1;
}

static __always_inline int handle(struct __sk_buff *skb, __u32 network)
{
    struct packet packet = {};
    struct counter *counter, *other;
    struct flow *flow;
    __u64 now, last;
    __u32 length, count;
    int is_local, is_here, failure;

    // A VLAN's packets come once more, from its own interface.
    if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
        return LEAVE;
    if (read_packet(skb, network, &packet))
        return read_error(skb, network);
    flow = bpf_map_lookup_elem(&flows, &packet.key);
    if (!flow)
        return LEAVE;
    if (packet.has_options)
        return leave(WHY_OPTIONS);
    if (packet.is_fragment)
        return leave(WHY_FRAGMENT);
    if (packet.is_malformed)
        return leave(WHY_MALFORMED);
    counter = counter_of(flow->counter);
    if (!counter)
        return leave(WHY_FAULT);

    if (!is_proven(counter, flow->counter))
        return leave(WHY_UNPROVEN);

    now = bpf_ktime_get_ns();
    last = counter->last;
    // Signed: somebody else may just have written a later time.
    if (flow->flags & FLOW_FROM_CLIENT && (__s64)(now - last) > QUIET_NANOSECONDS) {
        other = counter_of(flow->counter ^ 1);
        if (!other || (__s64)(now - other->last) > QUIET_NANOSECONDS)
            return leave(WHY_AFTER_PAUSE); // User space notes the time.
    }
    is_local = flow->flags & FLOW_TO_LOCAL;
    if (!is_local && packet.hop_limit <= 1)
        return leave(WHY_HOP_LIMIT);
    length = packet.transport - packet.network + sizeof(struct udphdr) + (skb->gso_size ?: packet.payload);
    if (flow->mtu && length > flow->mtu)
        return leave(WHY_TOO_BIG);

    failure = rewrite(skb, network, &packet, flow, !is_local);
    if (failure == WHY_FAULT)
        return leave(failure);
    is_here = is_local && flow->interface == skb->ifindex;
    // Where packets begin with the network header, there is no room for another one, and what redirects wants it. It
    // drops them otherwise.
    if (!network && !is_here && failure == REWRITTEN && bpf_skb_change_head(skb, ETH_HLEN, 0))
        failure = WHY_BROKEN;
    if (failure == WHY_BROKEN) {
        leave(failure);
        return TC_ACT_SHOT; // Half of it is changed. Nobody shall see that.
    }
    count = skb->gso_size ? (packet.payload + skb->gso_size - 1) / skb->gso_size : 1;
    __sync_fetch_and_add(&counter->packets, count);
    __sync_fetch_and_add(&counter->bytes, packet.payload);
    counter->last = now;
    if (is_here)
        return TC_ACT_OK; // It is where it has to be.
    return bpf_redirect_neigh(flow->interface, NULL, 0, 0);
}

SEC("tc")
int ethernet(struct __sk_buff *skb)
{
    return handle(skb, ETH_HLEN);
}

// Of interfaces whose packets begin with the network header, such as those of tunnels.
SEC("tc")
int plain(struct __sk_buff *skb)
{
    return handle(skb, 0);
}

char _license[] SEC("license") = "Dual MIT/GPL";
