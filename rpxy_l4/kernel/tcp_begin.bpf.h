// SPDX-License-Identifier: MIT
//
// TCP: how a connection begins.
//
// A SYN is left to the sockets, where it makes a connection in user space, unless user space has accepted one from the same
// client lately (so the client may come in, and the way back to it is known), and a target has lately answered one of user
// space's own with the addresses that are used here.

#pragma once

#include "tcp_maps.bpf.h"

#define NANOSECONDS 1000000000LL
#define NANOSECONDS_IN_MICROSECOND 1000
#define REMEMBERED_NANOSECONDS (60 * NANOSECONDS) // TCP_TIMEWAIT_LEN of Linux.
#define PATIENCE_NANOSECONDS (2 * NANOSECONDS) // The second SYN comes after one second, the third after three (RFC 6298).
#define SLACK 65536 // Bytes that a segment may be beside the window: a probe, or what was sent long ago.
#define PORT_TRIES 8
// Without CAP_PERFMON, the verifier does not follow a loop whose counter is on the stack.
#define UNROLLED _Pragma("clang loop unroll(full)")
#define MOST_FAILURES 12 // Beyond these the time without trust does not double any more: an hour.
#define MOST_OPTIONS 8
#define MOST_HEADER_BYTES 63

#define TCP_HEADER_WORDS 5
#define OPTION_END 0
#define OPTION_NOTHING 1
#define OPTION_MSS 2
#define OPTION_SCALE 3

#define FIN 1
#define SYN 2
#define RST 4
#define ACK 16

struct segment {
    __u32 sequence;
    __u32 acknowledged;
    __u32 size_at; // Offset of the greatest segment size that a SYN allows; 0: it says none.
    __u32 window;
    __u32 scale; // Of windows to come, in a SYN; or NO_SCALE.
    __u8 flags;
};

// What of a SYN's options matters here.
static __always_inline void read_options(struct __sk_buff *skb, const struct packet *packet, struct segment *segment)
{
    __u32 at = sizeof(struct tcphdr);
    __u8 option[3]; // Kind, length and, of a scale, what is said.
    int i;

    UNROLLED
    for (i = 0; i < MOST_OPTIONS; i++) {
        // The mask makes one state for the verifier of all that it could be.
        at &= MOST_HEADER_BYTES;
        if (at + sizeof(option) > packet->header ||
            bpf_skb_load_bytes(skb, packet->transport + at, option, sizeof(option)) || option[0] == OPTION_END)
            return;
        if (option[0] == OPTION_MSS)
            segment->size_at = at + 2;
        if (option[0] == OPTION_SCALE)
            segment->scale = option[2] < MOST_SCALE ? option[2] : MOST_SCALE;
        if (option[0] == OPTION_NOTHING)
            option[1] = 1;
        if (!option[1])
            return;
        at += option[1];
    }
}

static __always_inline int read_segment(struct __sk_buff *skb, struct packet *packet, struct segment *segment)
{
    struct tcphdr tcp;
    __u32 room = skb->len - packet->transport;

    if (bpf_skb_load_bytes(skb, packet->transport, &tcp, sizeof(tcp)))
        return -1;
    packet->key.source_port = tcp.source;
    packet->key.destination_port = tcp.dest;
    packet->header = tcp.doff * 4;
    // Behind a short segment, the frame may be filled up.
    if (!skb->gso_size && packet->length < room)
        room = packet->length;
    packet->is_malformed = tcp.doff < TCP_HEADER_WORDS || packet->header > room || (!skb->gso_size && packet->length > room);
    packet->payload = room - packet->header;
    segment->sequence = bpf_ntohl(tcp.seq);
    segment->acknowledged = bpf_ntohl(tcp.ack_seq);
    segment->window = bpf_ntohs(tcp.window);
    segment->scale = NO_SCALE;
    segment->flags = tcp.fin * FIN | tcp.syn * SYN | tcp.rst * RST | tcp.ack * ACK;
    if (tcp.syn && !packet->is_malformed)
        read_options(skb, packet, segment);
    return 0;
}

static __always_inline struct total *total_of(const struct flow *way)
{
    __u32 index = way->counter;

    return bpf_map_lookup_elem(&totals, &index);
}

static __always_inline struct target *target_at(__u32 index)
{
    return bpf_map_lookup_elem(&targets, &index);
}

// 1 if a duration is above a bound, 0 otherwise. Without a branch: the verifier would follow each of them, and without
// CAP_PERFMON it refuses an index that is another constant on each way there.
static __always_inline __u64 above(__u64 microseconds, __u64 bound)
{
    __u64 left = bound - microseconds;

    asm volatile("" : "+r"(left)); // The compiler would make a branch of it.
    return left >> 63;
}

// The bucket of a duration: the first whose bound it is not above.
static __always_inline __u64 connect_bucket(__u64 microseconds)
{
    return above(microseconds, 500) + above(microseconds, 1000) + above(microseconds, 2500) +
           above(microseconds, 5000) + above(microseconds, 10000) + above(microseconds, 25000) +
           above(microseconds, 50000) + above(microseconds, 100000) + above(microseconds, 500000) +
           above(microseconds, 1000000) + above(microseconds, 5000000);
}

static __always_inline __u64 session_bucket(__u64 microseconds)
{
    return above(microseconds, 10000) + above(microseconds, 100000) + above(microseconds, 500000) +
           above(microseconds, 1000000) + above(microseconds, 5000000) + above(microseconds, 15000000) +
           above(microseconds, 60000000) + above(microseconds, 300000000) + above(microseconds, 1800000000) +
           above(microseconds, 3600000000);
}

#define FACTOR 0x9e3779b97f4a7c15

// A step of the sum over a client, as balance.py has it.
static __always_inline __u64 mix(__u64 sum, __u64 number)
{
    sum = (sum ^ number) * FACTOR;
    return sum ^ sum >> 32;
}

static __always_inline __u64 sum_of_address(__u8 family, const __be32 *address)
{
    if (family == 4)
        return mix(0, bpf_ntohl(address[0]));
    return mix(mix(0, (__u64)bpf_ntohl(address[0]) << 32 | bpf_ntohl(address[1])),
               (__u64)bpf_ntohl(address[2]) << 32 | bpf_ntohl(address[3]));
}

static __always_inline __u32 bucket_of(const struct flow_key *key, int with_port)
{
    __u64 sum = sum_of_address(key->family, key->source);

    if (with_port)
        sum = mix(sum, bpf_ntohs(key->source_port));
    return sum * FACTOR >> 52;
}

// What the sum over some bytes (RFC 1071) changes by when they become others, and "more" besides.
static __always_inline __u32 difference(const void *before, const void *after, __u32 bytes, __u32 more)
{
    return bpf_csum_diff((void *)before, bytes, (void *)after, bytes, more);
}

// Set what a direction's packets become, all but where they leave.
static __always_inline void set_changes(struct flow *way, const struct flow_key *before)
{
    way->address_change = fold(difference(before->source, way->source, 2 * sizeof(way->source), 0));
    way->port_change = fold(difference(&before->source_port, &way->source_port, sizeof(struct ports), 0));
}

// Have both ends send no longer packets than both ways take, so that none needs to be told later.
static __always_inline void limit_segments(struct __sk_buff *skb, __u32 network, const struct packet *packet,
                                           const struct segment *segment, __u32 mtu)
{
    __u32 network_header = packet->key.family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
    __u32 transport = network + network_header, at = transport + segment->size_at;
    __be16 before, after;

    if (!segment->size_at || segment->size_at + sizeof(after) > packet->header ||
        mtu <= network_header + sizeof(struct tcphdr))
        return;
    after = bpf_htons(mtu - network_header - sizeof(struct tcphdr));
    if (bpf_skb_load_bytes(skb, at, &before, sizeof(before)) || bpf_ntohs(before) <= bpf_ntohs(after))
        return;
    bpf_skb_store_bytes(skb, at, &after, sizeof(after), 0);
    // A sum is over words, and these two bytes may be of two of them.
    if (segment->size_at & 1) {
        before = __builtin_bswap16(before);
        after = __builtin_bswap16(after);
    }
    bpf_l4_csum_replace(skb, transport + offsetof(struct tcphdr, check), before, after, sizeof(after));
}

static __always_inline __u32 shorter(__u32 one, __u32 other)
{
    if (!one || (other && other < one))
        return other;
    return one;
}

// Forget a connection that nobody knows as yet, and have its place vacant.
static __always_inline void give_up(struct place *place)
{
    bpf_map_delete_elem(&open, place);
    bpf_map_push_elem(&vacant, &place->number, BPF_ANY);
    place->number |= 1;
    bpf_map_delete_elem(&open, place);
}

// Make both directions of a connection known, from a port that no other connection to this target has. Return what
// stands in the way, or CHANGED.
//
// A target that remembers an earlier connection takes a new one only if it begins behind that one's sequence numbers, or
// time stamps (RFC 6191). It does if it comes from the same port of the same client (RFC 6528). So a client's port leads to
// the same port again and again, and no other has that for a while.
static __always_inline int know(const struct flow_key *key, const struct client *client, const struct target *target,
                                __u32 index, const struct settings *wanted, const struct segment *segment, __u64 now)
{
    __u64 who = sum_of_address(key->family, key->source);
    struct direction *from_client, *from_target;
    struct memory *memory;
    struct scratch *scratch;
    struct flow_key *back;
    __u32 number, other_number;
    struct place *place;
    __u64 first = wanted->ports[0], in_first = wanted->ports[1], more = wanted->ports[2];
    __u32 count = in_first + wanted->ports[3], chosen;
    int failure; // No long: before Linux 6.4, the upper half of what maps return is anything.
    int i;

    scratch = scratch_now();
    if (!count || !scratch)
        return WHY_NO_PORT;
    if (bpf_map_pop_elem(&vacant, &number))
        return WHY_LIMIT;
    other_number = number ^ 1;
    from_client = direction_at(number);
    from_target = direction_at(other_number);
    if (!from_client || !from_target)
        return WHY_FAULT; // That cannot be.
    __builtin_memset(&scratch->back, 0, sizeof(scratch->back));
    __builtin_memset(from_client, 0, sizeof(*from_client));
    __builtin_memset(from_target, 0, sizeof(*from_target));
    back = &scratch->back;
    back->protocol = IPPROTO_TCP;
    back->family = key->family;
    __builtin_memcpy(back->source, target->address, sizeof(back->source));
    __builtin_memcpy(back->destination, target->source, sizeof(back->destination));
    back->source_port = target->port;

    // What clients send, but for the port.
    __builtin_memcpy(from_client->way.source, target->source, sizeof(from_client->way.source));
    __builtin_memcpy(from_client->way.destination, target->address, sizeof(from_client->way.destination));
    from_client->way.destination_port = target->port;
    from_client->way.interface = target->interface;
    from_client->way.mtu = target->mtu;
    from_client->way.flags = FLOW_FROM_CLIENT | (target->is_local ? FLOW_TO_LOCAL : 0);
    from_client->next = segment->sequence + 1;
    from_client->scale = segment->scale;

    // What targets send.
    __builtin_memcpy(from_target->way.source, key->destination, sizeof(from_target->way.source));
    __builtin_memcpy(from_target->way.destination, key->source, sizeof(from_target->way.destination));
    from_target->way.source_port = key->destination_port;
    from_target->way.destination_port = key->source_port;
    from_target->way.interface = client->interface;
    from_target->way.mtu = client->mtu;
    from_target->way.flags = client->is_local ? FLOW_TO_LOCAL : 0;

    from_client->way.counter = from_target->way.counter = index;
    from_client->longest = from_target->longest = shorter(target->mtu, client->mtu);
    from_client->last = from_target->last = from_target->begun = now;
    place = &scratch->place;
    place->begun = now;
    place->number = other_number;
    failure = bpf_map_update_elem(&open, place, &number, BPF_NOEXIST);
    place->number = number;
    if (failure || bpf_map_update_elem(&open, place, &number, BPF_NOEXIST)) {
        give_up(place);
        return WHY_LIMIT;
    }
    failure = -1;
    UNROLLED
    for (i = 0; i < PORT_TRIES; i++) {
        chosen = (i ? bpf_get_prandom_u32() : (__u32)who + bpf_ntohs(key->source_port)) % count;
        back->destination_port = bpf_htons(chosen < in_first ? first + chosen : more + chosen - in_first);
        memory = bpf_map_lookup_elem(&remembered, back);
        if (memory && (__s64)(now - memory->since) < REMEMBERED_NANOSECONDS &&
            (memory->client != who || memory->port != key->source_port))
            continue;
        from_client->way.source_port = back->destination_port;
        set_changes(&from_client->way, key);
        set_changes(&from_target->way, back);
        failure = bpf_map_update_elem(&connections, back, &other_number, BPF_NOEXIST);
        if (failure != -17) // EEXIST: another connection has this port.
            break;
    }
    if (!failure && bpf_map_update_elem(&connections, key, &number, BPF_NOEXIST)) {
        bpf_map_delete_elem(&connections, back);
        failure = -1;
    }
    if (failure) {
        give_up(place);
        return i == PORT_TRIES ? WHY_NO_PORT : WHY_FAULT;
    }
    // Now that it has both keys, packets may end it.
    from_client->begun = now;
    return CHANGED;
}

#define NOT_OURS -2

// Make a connection of a SYN that belongs to none. Return CHANGED, and its number is in the scratch then; or
// NOT_OURS, or what stands in the way.
static __always_inline int begin(const struct packet *packet, const struct segment *segment)
{
    __u64 now = bpf_ktime_get_ns();
    struct flow_key who = packet->key;
    struct settings *wanted;
    struct target *target;
    struct client *client;
    __u32 bucket, *choice;
    int result;

    who.source_port = 0;
    client = bpf_map_lookup_elem(&clients, &who);
    wanted = settings_now();
    if (!client || !wanted || wanted->choosing == CHOOSE_NONE || client->epoch != wanted->epoch)
        return NOT_OURS;
    if ((__s64)(now - client->until) > 0)
        return WHY_CLIENT;
    if (packet->has_options || packet->is_fragment || packet->is_malformed)
        return WHY_MALFORMED;
    if (wanted->choosing == CHOOSE_ANY)
        bucket = wanted->choices ? bpf_get_prandom_u32() % (__u32)wanted->choices : 0;
    else
        bucket = bucket_of(&packet->key, wanted->choosing == CHOOSE_BY_SOCKET);
    choice = bpf_map_lookup_elem(&choices, &bucket);
    if (!choice)
        return WHY_FAULT;
    target = target_at(*choice);
    if (!target || target->family != packet->key.family || !target->proven)
        return WHY_TARGET;
    if (!target->is_local && packet->hop_limit <= 1)
        return WHY_HOP_LIMIT;
    if ((__s64)(wanted->begun - wanted->over - wanted->ended) >= (__s64)wanted->most)
        return WHY_LIMIT;
    // First: user space looks no more when nothing is open.
    __sync_fetch_and_add(&wanted->begun, 1);
    result = know(&packet->key, client, target, *choice, wanted, segment, now);
    if (result != CHANGED)
        __sync_fetch_and_add(&wanted->over, 1);
    return result;
}

// The answer to a SYN that user space has sent to a target: with these addresses it answers.
static __always_inline int note_answer(const struct packet *packet)
{
    __u64 now = bpf_ktime_get_ns();
    struct flow_key who = packet->key;
    struct target *target;
    __u32 *index;

    who.destination_port = 0;
    index = bpf_map_lookup_elem(&answers, &who);
    if (!index)
        return LEAVE;
    target = target_at(*index);
    if (!target)
        return LEAVE;
    target->answered = now;
    if (!target->proven && now >= target->not_before)
        target->proven = 1;
    return LEAVE;
}
