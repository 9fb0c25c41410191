// SPDX-License-Identifier: MIT
//
// What the sender of a packet is told that is too long for the way on: the same as by any router.

#pragma once

#include "tcp_begin.bpf.h"

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

#define ROUTERS_HOP_LIMIT 64

struct ipv4_answer {
    struct iphdr ip;
    struct icmp_too_big icmp;
};

struct ipv6_answer {
    struct ipv6hdr ip;
    struct icmpv6_too_big icmp;
};

// What is put together in scratch.headers.
struct headers {
    union {
        struct ipv4_answer ipv4;
        struct ipv6_answer ipv6;
    } answer;
    union {
        struct iphdr ipv4;
        struct ipv6hdr ipv6;
    } returned;
    struct tcphdr tcp;
};

_Static_assert(sizeof(struct headers) <= sizeof(((struct scratch *)0)->headers), "there is room");

static __always_inline __u32 sum_of(const void *start, __u32 bytes, __u32 more)
{
    return bpf_csum_diff(NULL, 0, (void *)start, bytes, more);
}

// Choose the checksum of a returned TCP header whose other words have this sum. Nobody reads it; but a device may still be
// going to finish what it takes for the checksum of the original, and must find that nothing changes by it. So it is f where
// f = ~(sum + f), in arithmetic modulo 65535: half of ~sum.
static __always_inline __u16 lasting_checksum(__u32 sum)
{
    __u32 rest = (__u16)~fold(sum);

    rest = rest & 1 ? (rest + 0xffff) >> 1 : rest >> 1;
    return rest ?: 0xffff;
}

// Make of a packet the answer that it is too long: what it begins with, behind headers of our own.
static __always_inline int answer_too_big(struct __sk_buff *skb, __u32 network, const struct packet *packet, __u32 mtu)
{
    __u32 is_ipv4 = packet->key.family == 4;
    __u32 header = is_ipv4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
    __u32 more = is_ipv4 ? sizeof(struct ipv4_answer) : sizeof(struct ipv6_answer);
    __u32 pseudo[2] = {bpf_htonl(sizeof(struct icmpv6_too_big) + sizeof(struct ipv6hdr) + sizeof(struct tcphdr)),
                       bpf_htonl(IPPROTO_ICMPV6)};
    struct scratch *scratch = scratch_now();
    struct headers *made;
    struct tcphdr *tcp;
    int result;
    __u32 sum;

    if (!scratch)
        return WHY_FAULT;
    made = (void *)scratch->headers;
    tcp = &made->tcp;
    // This also forgets that it was many in one.
    if (bpf_skb_change_tail(skb, network + header + sizeof(*tcp), 0) ||
        bpf_skb_load_bytes(skb, network + header, tcp, sizeof(*tcp)) ||
        bpf_skb_adjust_room(skb, more, BPF_ADJ_ROOM_MAC, 0))
        return WHY_FAULT;
    tcp->check = 0;
    tcp->check = lasting_checksum(sum_of(tcp, sizeof(*tcp), 0));
    sum = sum_of(tcp, sizeof(*tcp), 0);
    if (bpf_skb_store_bytes(skb, network + more + header, tcp, sizeof(*tcp), BPF_F_RECOMPUTE_CSUM))
        return WHY_FAULT;
    if (is_ipv4) {
        struct iphdr *ip = &made->returned.ipv4;
        struct ipv4_answer *answer = &made->answer.ipv4;

        if (bpf_skb_load_bytes(skb, network + more, ip, sizeof(*ip)))
            return WHY_FAULT;
        __builtin_memset(answer, 0, sizeof(*answer));
        answer->icmp.type = ICMP_UNREACHABLE;
        answer->icmp.code = ICMP_TOO_BIG;
        answer->icmp.mtu = bpf_htons(mtu);
        sum = sum_of(&answer->icmp, sizeof(answer->icmp), sum_of(ip, sizeof(*ip), sum));
        answer->icmp.checksum = ~fold(sum);
        answer->ip.version = 4;
        answer->ip.ihl = IP_WORDS_WITHOUT_OPTIONS;
        answer->ip.tot_len = bpf_htons(sizeof(*answer) + sizeof(*ip) + sizeof(*tcp));
        answer->ip.ttl = ROUTERS_HOP_LIMIT;
        answer->ip.protocol = IPPROTO_ICMP;
        answer->ip.saddr = packet->key.destination[0];
        answer->ip.daddr = packet->key.source[0];
        answer->ip.check = ~fold(sum_of(&answer->ip, sizeof(answer->ip), 0));
        result = bpf_skb_store_bytes(skb, network, answer, sizeof(*answer), BPF_F_RECOMPUTE_CSUM);
        // Otherwise the two branches become one with variable places, which the verifier refuses without CAP_PERFMON.
        asm volatile("" : "+r"(result));
    } else {
        struct ipv6hdr *ip = &made->returned.ipv6;
        struct ipv6_answer *answer = &made->answer.ipv6;

        if (bpf_skb_load_bytes(skb, network + more, ip, sizeof(*ip)))
            return WHY_FAULT;
        __builtin_memset(answer, 0, sizeof(*answer));
        answer->icmp.type = ICMPV6_TOO_BIG;
        answer->icmp.mtu = bpf_htonl(mtu);
        answer->ip.version = 6;
        answer->ip.payload_len = bpf_htons(sizeof(answer->icmp) + sizeof(*ip) + sizeof(*tcp));
        answer->ip.nexthdr = IPPROTO_ICMPV6;
        answer->ip.hop_limit = ROUTERS_HOP_LIMIT;
        __builtin_memcpy(&answer->ip.saddr, packet->key.destination, sizeof(answer->ip.saddr));
        __builtin_memcpy(&answer->ip.daddr, packet->key.source, sizeof(answer->ip.daddr));
        // RFC 4443 section 2.3: with addresses, length and protocol.
        sum = sum_of(&answer->ip.saddr, 2 * sizeof(answer->ip.saddr), sum_of(pseudo, sizeof(pseudo), sum));
        sum = sum_of(&answer->icmp, sizeof(answer->icmp), sum_of(ip, sizeof(*ip), sum));
        answer->icmp.checksum = ~fold(sum);
        result = bpf_skb_store_bytes(skb, network, answer, sizeof(*answer), BPF_F_RECOMPUTE_CSUM);
    }
    return result ? WHY_FAULT : CHANGED;
}
