// SPDX-License-Identifier: MIT
//
// UDP: flows that user space has put in, and that have their sockets underneath.

#pragma once

#include "packet.bpf.h"

// What has passed in one direction. User space has this memory mapped.
struct counter {
    __u64 passed; // Packets, as they are on the wire and not as they are joined in memory, from PACKET on; bytes of payload.
    __u64 last;   // When, CLOCK_MONOTONIC at its last tick in nanoseconds.
    __u64 proof;  // See below.
    __u64 of_user_space[5]; // A cache line each: the directions are often served by different processors.
};

// Two counts in one word cost one locked addition rather than two, a tenth of what is done for a packet. User space reads
// the difference to what it has read before: 256 GiB and 67 million packets of one direction can be told apart.
#define PACKET (1ULL << 38)

// What the sockets see need not be what is on the wire: this host may translate addresses (NAT) before or behind them.
// So nothing is forwarded before a packet of each direction has arrived as it is expected here.
enum proof {
    PROOF_NONE,
    PROOF_OF_THIS,
    PROOF_OF_BOTH,
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

// After so long without a packet, user space looks at what a client sends: its port may be another program's by now.
// The same as _QUIET_SECONDS in workers/udp.py.
#define QUIET_NANOSECONDS 5000000000LL

static __always_inline struct counter *counter_of(__u32 index)
{
    return bpf_map_lookup_elem(&counters, &index);
}

// Note that packets may be no longer than this from now on, of the direction that "answers" are the answers to.
static __always_inline void shorten(const struct flow_key *answers, __u32 mtu, __u32 least)
{
    struct flow *back = bpf_map_lookup_elem(&flows, answers), *flow;
    struct flow_key key;

    mtu = mtu < least ? least : mtu > 0xffff ? 0xffff : mtu;
    if (!back)
        return;
    turn(back, answers, &key);
    flow = bpf_map_lookup_elem(&flows, &key);
    if (flow && (!flow->mtu || mtu < flow->mtu))
        flow->mtu = mtu;
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


static __always_inline int read_datagram(struct __sk_buff *skb, struct packet *packet)
{
    struct udphdr udp;
    __u32 room;

    if (bpf_skb_load_bytes(skb, packet->transport, &udp, sizeof(udp)))
        return -1;
    packet->key.source_port = udp.source;
    packet->key.destination_port = udp.dest;
    packet->header = sizeof(udp);
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

static __always_inline int handle_udp(struct __sk_buff *skb, __u32 network, struct packet *packet)
{
    struct counter *counter, *other;
    struct settings *wanted;
    struct flow *flow;
    __u64 now, last;
    int result;

    if (read_datagram(skb, packet))
        return LEAVE;
    flow = bpf_map_lookup_elem(&flows, &packet->key);
    if (!flow)
        return LEAVE;
    wanted = settings_now();
    if (!wanted || wanted->flags & SETTING_NO_UDP)
        return LEAVE;
    if (packet->has_options)
        return leave(WHY_OPTIONS);
    if (packet->is_fragment)
        return leave(WHY_FRAGMENT);
    if (packet->is_malformed)
        return leave(WHY_MALFORMED);
    counter = counter_of(flow->counter);
    if (!counter)
        return leave(WHY_FAULT);
    if (!is_proven(counter, flow->counter))
        return leave(WHY_UNPROVEN);

    now = bpf_ktime_get_coarse_ns();
    last = counter->last;
    // Signed: somebody else may just have written a later time.
    if (flow->flags & FLOW_FROM_CLIENT && (__s64)(now - last) > QUIET_NANOSECONDS) {
        other = counter_of(flow->counter ^ 1);
        if (!other || (__s64)(now - other->last) > QUIET_NANOSECONDS)
            return leave(WHY_AFTER_PAUSE); // User space notes the time.
    }
    if (!(flow->flags & FLOW_TO_LOCAL) && packet->hop_limit <= 1)
        return leave(WHY_HOP_LIMIT);
    if (flow->mtu && length_of(skb, packet) > flow->mtu)
        return leave(WHY_TOO_BIG);

    result = change(skb, network, packet, flow);
    if (result == WHY_FAULT)
        return leave(result);
    if (result != CHANGED)
        return drop(result);
    __sync_fetch_and_add(&counter->passed, count_of(skb, packet) * PACKET + packet->payload);
    counter->last = now;
    return pass(skb, flow);
}
