// SPDX-License-Identifier: MIT
//
// What both transports need: what a packet is, what it becomes, and how it is changed.

#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
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
    __u32 counter;   // UDP: index; that of the other direction is counter ^ 1. TCP: that of the target.
    __u16 mtu;       // Of the way there; 0 is any length.
    __u16 flags;
    __u32 address_change; // What the addresses and the ports add to a sum over them (RFC 1071), in the order of bytes
    __u32 port_change;    // that this machine has.
};

// Why a packet of a flow is left to the sockets or, of a TCP connection, which has none, dropped; its sender hears of one
// that is too big. In the order of Why in layout.py.
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
    WHY_CLIENT,
    WHY_TARGET,
    WHY_LIMIT,
    WHY_NO_PORT,
    WHY_REFUSED,
    WHY_COUNT,
};

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __type(key, __u32);
    __type(value, __u64);
    __uint(max_entries, WHY_COUNT);
} left SEC(".maps");

// RFC 791: where a fragment belongs, and that there are more.
#define IP_OFFSET 0x1fff
#define IP_MORE 0x2000
#define IP_WORDS_WITHOUT_OPTIONS 5

// What user space wants. It has this memory mapped.
struct settings {
    __u64 epoch;     // What was learned of clients in another one counts no more.
    __u64 choosing;  // How a connection's target is chosen; see enum choosing in tcp_maps.bpf.h.
    __u64 choices;   // How many there are of these.
    __u64 ports[4];  // That connections towards targets may have: first and number, twice.
    __u64 flags;     // SETTING_*
    __u64 most;      // Connections at a time.
    __u64 ended;     // Of those, how many user space has ended.
    __u64 targets;   // How many numbers of targets are in use.
    __u64 counted[2]; // User space's.
    __u64 closed_by_user_space; // Of those that it has ended, how many were established.
    __u64 elsewhere; // User space's.
    __u64 zero;
    __u64 begun;     // Connections by their SYNs, and how many of them have ended. The program's, and the others.
    __u64 over;
    __u64 opened;    // Those that were established, and how many of them have ended.
    __u64 closed;
    __u64 zeros[4];
};

#define SETTING_TELL 1   // Each connection's end.
#define SETTING_NO_UDP 2 // Flows are left to the sockets.
#define SETTING_TCP 4    // There have been connections: look for them.

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __type(key, __u32);
    __type(value, struct settings);
    __uint(max_entries, 1);
    __uint(map_flags, BPF_F_MMAPABLE);
} settings SEC(".maps");

static __always_inline struct settings *settings_now(void)
{
    __u32 index = 0;

    return bpf_map_lookup_elem(&settings, &index);
}

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

// For what must not reach anybody.
static __always_inline int drop(enum why why)
{
    leave(why);
    return TC_ACT_SHOT;
}

// Where things are in the packet, and what it is.
struct packet {
    struct flow_key key;
    __u32 network;   // Offset of the network header,
    __u32 transport; // and of the transport header.
    __u32 length;    // From there on, as the network header says.
    __u32 payload;   // Bytes.
    __u32 header;    // Of the transport, bytes.
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
    if (ip.version != 4 || ip.frag_off & bpf_htons(IP_OFFSET))
        return -1;
    packet->key.protocol = ip.protocol;
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
    if (ip.version != 6)
        return -1;
    packet->key.protocol = ip.nexthdr;
    __builtin_memcpy(packet->key.source, &ip.saddr, sizeof(ip.saddr));
    __builtin_memcpy(packet->key.destination, &ip.daddr, sizeof(ip.daddr));
    packet->key.family = 6;
    packet->hop_limit = ip.hop_limit;
    packet->transport = packet->network + sizeof(ip);
    packet->length = bpf_ntohs(ip.payload_len);
    return 0;
}

// Read the network header; what is behind it, key.protocol says then.
static __always_inline int read_network(struct __sk_buff *skb, __u32 network, struct packet *packet)
{
    packet->network = network;
    if (skb->protocol == bpf_htons(ETH_P_IP))
        return read_ipv4(skb, packet);
    if (skb->protocol == bpf_htons(ETH_P_IPV6))
        return read_ipv6(skb, packet);
    return -1;
}

// How long a packet is on the wire: the longest of those that were joined in memory.
static __always_inline __u32 length_of(const struct __sk_buff *skb, const struct packet *packet)
{
    return packet->transport - packet->network + packet->header + (skb->gso_size ?: packet->payload);
}

// How many it is there.
static __always_inline __u32 count_of(const struct __sk_buff *skb, const struct packet *packet)
{
    return skb->gso_size ? (packet->payload + skb->gso_size - 1) / skb->gso_size : 1;
}

// The key of what comes the other way: packets between the same two ends as this direction's become. "key" is that of this
// direction.
static __always_inline void turn(const struct flow *way, const struct flow_key *key, struct flow_key *other)
{
    __builtin_memcpy(other->source, way->destination, sizeof(other->source));
    __builtin_memcpy(other->destination, way->source, sizeof(other->destination));
    other->source_port = way->destination_port;
    other->destination_port = way->source_port;
    other->protocol = key->protocol;
    other->family = key->family;
    other->zero = 0;
}

#define CHANGED -1

// What TCP and UDP headers begin with.
struct ports {
    __be16 source;
    __be16 destination;
};

static __always_inline __u16 fold(__u32 sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return sum + (sum >> 16);
}

// Change addresses, ports, hop limit and checksums (RFC 1624). Only the first step can fail before anything is changed:
// it makes all the headers writable.
static __always_inline int rewrite(struct __sk_buff *skb, __u32 network, const struct packet *packet,
                                   const struct flow *flow)
{
    __u32 hop = !(flow->flags & FLOW_TO_LOCAL);
    __u32 is_ipv4 = packet->key.family == 4;
    __u32 transport = network + (is_ipv4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
    __u32 is_udp = packet->key.protocol == IPPROTO_UDP;
    __u32 checksum = transport + (is_udp ? offsetof(struct udphdr, check) : offsetof(struct tcphdr, check));
    __u64 flags = is_udp ? BPF_F_MARK_MANGLED_0 : 0;
    void *start, *end;

    // A device, or the sender on this machine, may have left the transport's checksum to be finished: the helper knows.
    if (bpf_l4_csum_replace(skb, checksum, 0, flow->address_change, flags | BPF_F_PSEUDO_HDR))
        return WHY_FAULT;
    if (bpf_l4_csum_replace(skb, checksum, 0, flow->port_change, flags))
        return WHY_BROKEN;
    if (is_ipv4) {
        struct iphdr *ip;
        struct ports *ports;
        __u32 sum;

        start = (void *)(long)skb->data;
        end = (void *)(long)skb->data_end;
        ip = start + network;
        ports = (void *)(ip + 1);
        if ((void *)(ports + 1) > end)
            return WHY_BROKEN;
        ip->saddr = flow->source[0];
        ip->daddr = flow->destination[0];
        ports->source = flow->source_port;
        ports->destination = flow->destination_port;
        sum = (__u16)~ip->check + fold(flow->address_change);
        if (hop) {
            sum += (__u16)~bpf_htons(0x0100);
            ip->ttl -= 1;
        }
        ip->check = ~fold(sum);
    } else {
        struct ipv6hdr *ip;
        struct ports *ports;

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
        ports = (void *)(ip + 1);
        if ((void *)(ports + 1) > end)
            return WHY_BROKEN;
        __builtin_memcpy(&ip->saddr, flow->source, sizeof(flow->source));
        __builtin_memcpy(&ip->daddr, flow->destination, sizeof(flow->destination));
        ports->source = flow->source_port;
        ports->destination = flow->destination_port;
    }
    return CHANGED;
}

static __always_inline int is_here(const struct __sk_buff *skb, const struct flow *flow)
{
    return flow->flags & FLOW_TO_LOCAL && flow->interface == skb->ifindex;
}

// Make a packet what it is to be: CHANGED, or why not. Nothing has happened to it after WHY_FAULT; after WHY_BROKEN, half
// of it is changed, and nobody shall see that.
static __always_inline int change(struct __sk_buff *skb, __u32 network, const struct packet *packet,
                                  const struct flow *flow)
{
    int result = rewrite(skb, network, packet, flow);

    // Where packets begin with the network header, there is no room for another one, and what redirects wants it. It
    // drops them otherwise.
    if (result == CHANGED && !network && !is_here(skb, flow) && bpf_skb_change_head(skb, ETH_HLEN, 0))
        return WHY_BROKEN;
    return result;
}

// Send a changed packet on its way.
static __always_inline int pass(const struct __sk_buff *skb, const struct flow *flow)
{
    if (is_here(skb, flow))
        return TC_ACT_OK; // It is where it has to be.
    return bpf_redirect_neigh(flow->interface, NULL, 0, 0);
}

