// SPDX-License-Identifier: MIT
//
// ICMP errors about packets that were rewritten here.

#pragma once

#include "narrow.bpf.h"
#include "tcp.bpf.h"
#include "udp.bpf.h"

// Every path takes packets of this length (RFC 791, RFC 8200 section 5), so less is not believed.
#define LEAST_MTU_IPV4 576
#define LEAST_MTU_IPV6 1280

// Pass on to the end that it concerns what a router says of a packet that was too long: it has no socket here. "to" is the
// way of what comes from the other end; "inner", "ports" and "checksum" say where the headers of the packet are that the
// router returns, and the checksum of what it says.
static __always_inline int pass_error(struct __sk_buff *skb, __u32 network, const struct flow_key *before,
                                      const struct flow *to, __u32 inner, __u32 ports, __u32 checksum)
{
    struct flow_key outer = {}; // Addresses only.
    __u32 is_ipv4 = before->family == 4;
    __u32 bytes = is_ipv4 ? 4 : 16;
    __u32 source = is_ipv4 ? offsetof(struct iphdr, saddr) : offsetof(struct ipv6hdr, saddr);
    struct ports returned = {.source = to->destination_port, .destination = to->source_port};
    struct ports known = {.source = before->destination_port, .destination = before->source_port};
    __u32 change = difference(&known, &returned, sizeof(known), 0);
    __u32 sum;

    if (bpf_skb_load_bytes(skb, network + source, outer.source, bytes) ||
        bpf_skb_load_bytes(skb, network + source + bytes, outer.destination, bytes))
        return drop(WHY_BROKEN);
    // The whole of it comes from the address that the end knows.
    sum = difference(outer.source, to->source, 2 * sizeof(to->source), 0);
    if (is_ipv4) {
        if (bpf_l3_csum_replace(skb, network + offsetof(struct iphdr, check), 0, sum, 0))
            return drop(WHY_FAULT);
    } else {
        change = difference(outer.source, to->source, 2 * sizeof(to->source), change);
    }
    // The returned packet is of the other direction.
    sum = difference(before->source, to->source, 2 * sizeof(to->source), 0);
    if (is_ipv4) {
        if (bpf_l3_csum_replace(skb, inner + offsetof(struct iphdr, check), 0, sum, 0))
            return drop(WHY_BROKEN);
    } else {
        change = difference(before->source, to->source, 2 * sizeof(to->source), change);
    }
    if (bpf_l4_csum_replace(skb, checksum, 0, change, 0) ||
        bpf_skb_store_bytes(skb, network + source, to->source, bytes, 0) ||
        bpf_skb_store_bytes(skb, network + source + bytes, to->destination, bytes, 0) ||
        bpf_skb_store_bytes(skb, inner + source, to->destination, bytes, 0) ||
        bpf_skb_store_bytes(skb, inner + source + bytes, to->source, bytes, 0) ||
        bpf_skb_store_bytes(skb, ports, &returned, sizeof(returned), 0))
        return drop(WHY_BROKEN);
    if (!network && !is_here(skb, to) && bpf_skb_change_head(skb, ETH_HLEN, 0))
        return drop(WHY_BROKEN);
    return pass(skb, to);
}

// Whether packets of this key are a connection's; *way says what becomes of them then.
static __always_inline int find_way(const struct flow_key *key, struct flow *way)
{
    struct direction *direction, *other;
    __u32 number;

    direction = find(key, &number);
    if (!direction)
        return 0;
    *way = direction->way;
    other = direction_at(number ^ 1);
    return other && leads_back(other, key);
}

// A router says that a packet of ours was too big. Of a datagram, that goes on to the sockets: the kernel learns the same
// from it, and cuts what user space sends.
static __always_inline int read_icmp(struct __sk_buff *skb, const struct packet *packet)
{
    struct {
        struct icmp_too_big icmp;
        struct iphdr ip;
        struct ports ports;
    } error;
    struct flow_key answers = {.family = 4};
    __u32 inner = packet->transport + sizeof(error.icmp);
    struct flow way;

    if (bpf_skb_load_bytes(skb, packet->transport, &error, sizeof(error)))
        return LEAVE;
    if (error.icmp.type != ICMP_UNREACHABLE || error.icmp.code != ICMP_TOO_BIG)
        return LEAVE;
    if (error.ip.ihl != IP_WORDS_WITHOUT_OPTIONS || packet->has_options || packet->is_fragment)
        return LEAVE;
    answers.source[0] = error.ip.daddr;
    answers.destination[0] = error.ip.saddr;
    answers.source_port = error.ports.destination;
    answers.destination_port = error.ports.source;
    answers.protocol = error.ip.protocol;
    if (error.ip.protocol == IPPROTO_UDP)
        shorten(&answers, bpf_ntohs(error.icmp.mtu), LEAST_MTU_IPV4);
    if (error.ip.protocol != IPPROTO_TCP)
        return LEAVE;
    if (!find_way(&answers, &way))
        return LEAVE;
    return pass_error(skb, packet->network, &answers, &way, inner, inner + sizeof(error.ip),
                      packet->transport + offsetof(struct icmp_too_big, checksum));
}

// The same.
static __always_inline int read_icmpv6(struct __sk_buff *skb, const struct packet *packet)
{
    struct {
        struct icmpv6_too_big icmp;
        struct ipv6hdr ip;
        struct ports ports;
    } error;
    struct flow_key answers = {.family = 6};
    __u32 inner = packet->transport + sizeof(error.icmp);
    struct flow way;

    if (bpf_skb_load_bytes(skb, packet->transport, &error, sizeof(error)))
        return LEAVE;
    if (error.icmp.type != ICMPV6_TOO_BIG)
        return LEAVE;
    __builtin_memcpy(answers.source, &error.ip.daddr, sizeof(answers.source));
    __builtin_memcpy(answers.destination, &error.ip.saddr, sizeof(answers.destination));
    answers.source_port = error.ports.destination;
    answers.destination_port = error.ports.source;
    answers.protocol = error.ip.nexthdr;
    if (error.ip.nexthdr == IPPROTO_UDP)
        shorten(&answers, bpf_ntohl(error.icmp.mtu), LEAST_MTU_IPV6);
    if (error.ip.nexthdr != IPPROTO_TCP)
        return LEAVE;
    if (!find_way(&answers, &way))
        return LEAVE;
    return pass_error(skb, packet->network, &answers, &way, inner, inner + sizeof(error.ip),
                      packet->transport + offsetof(struct icmpv6_too_big, checksum));
}
