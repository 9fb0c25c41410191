// SPDX-License-Identifier: MIT
//
// TCP: connections to a listener where nothing is to be detected. There are no sockets of theirs: the SYN goes to a target
// at once, from a port that this program chooses, and both ends speak to each other.

#pragma once

#include "narrow.bpf.h"
#include "tcp_begin.bpf.h"

// A target has refused a SYN, or has not answered the second one. Trust it no more, before user space has reached it again.
// Twice as long with each time that it is only silent: it may be that answers to our ports, and not to those of sockets, are
// lost somewhere. If it has answered others meanwhile, it is this one's SYNs that it does not like.
static __always_inline void distrust(const struct flow *way, int was_silent, __u64 begun, __u64 now)
{
    struct target *target = target_at(way->counter);
    struct total *total = total_of(way);
    __u64 failures, was_proven;

    if (!target || !total)
        return;
    total->refused += !was_silent;
    total->unanswered += was_silent;
    if (was_silent && target->answered > begun)
        return;
    was_proven = target->proven;
    target->proven = 0;
    if (!was_silent)
        return;
    if (!was_proven)
        return; // Others had no answer at the same time: that is one failure.
    failures = target->failures;
    target->not_before = now + (NANOSECONDS << (failures < MOST_FAILURES ? failures : MOST_FAILURES));
    target->failures = failures + 1;
}

// What is counted, and told, of a connection that was established.
static __always_inline void count_end(const struct flow_key *key, struct settings *wanted, struct total *total,
                                      __u32 reason, __u32 target, __u64 begun, __u64 connected, __u64 now,
                                      __u64 bytes_in, __u64 bytes_out)
{
    __u64 taken = (now - begun) / NANOSECONDS_IN_MICROSECOND;
    struct end *record;

    __sync_fetch_and_add(&wanted->closed, 1);
    total->closed[reason & 3] += 1;
    total->session[session_bucket(taken)] += 1;
    total->session[SESSION_BUCKETS] += taken;
    if (!(wanted->flags & SETTING_TELL))
        return;
    record = bpf_ringbuf_reserve(&ends, sizeof(*record), 0);
    if (!record) {
        total->untold += 1;
        return;
    }
    record->key = *key;
    record->target = target;
    record->reason = reason;
    record->begun = begun;
    record->connected = connected;
    record->ended = now;
    record->bytes_in = bytes_in;
    record->bytes_out = bytes_out;
    bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

// Take a connection out and count its end, once. "key" is that of what the client sends. (On kernels before 6.7 a removal
// may fail when user space is about one on this processor; then the connection, or what is left of it, is swept.)
static __always_inline void take_out(const struct flow_key *key, const struct flow_key *other_key,
                                     struct place *place, struct direction *from_client,
                                     const struct direction *from_target, __u32 reason)
{
    __u64 now = bpf_ktime_get_ns();
    struct settings *wanted = settings_now();
    struct total *total = total_of(&from_client->way);

    place->number &= ~1;
    if (bpf_map_delete_elem(&open, place) || !wanted || !total)
        return;
    bpf_map_delete_elem(&connections, key);
    bpf_map_delete_elem(&connections, other_key);
    place->number |= 1;
    if (bpf_map_delete_elem(&open, place))
        count_end(key, wanted, total, reason, from_client->way.counter, from_client->begun, from_target->begun, now,
                  from_client->bytes, from_target->bytes);
    from_client->begun = 0;
    place->number &= ~1;
    bpf_map_push_elem(&vacant, &place->number, BPF_ANY);
    // Last: user space looks no more when nothing is open.
    __sync_fetch_and_add(&wanted->over, 1);
}

// Whether its receiver can take a segment for one of the connection. Anybody can send packets with its addresses and ports.
static __always_inline int is_credible(const struct packet *packet, const struct segment *segment,
                                       const struct direction *other)
{
    __u32 end = segment->sequence + packet->payload + !!(segment->flags & FIN);
    __u32 window = other->allowed - other->acknowledged;

    if ((__s32)(end - other->allowed) > SLACK || (__s32)(other->acknowledged - end) > (__s32)(window + SLACK))
        return 0;
    return !(segment->flags & ACK) || (__s32)(segment->acknowledged - other->next) <= SLACK;
}

// Note what is acknowledged, and how much more may come. What is acknowledged has been sent: two processors that had two of
// the other's segments at the same moment may have noted the first of them last.
static __always_inline void acknowledge(const struct segment *segment, struct direction *this, struct direction *other)
{
    __u32 edge = segment->acknowledged + (segment->window << (this->scale & 15));

    if ((__s32)(segment->acknowledged - this->acknowledged) > 0)
        this->acknowledged = segment->acknowledged;
    if ((__s32)(edge - this->allowed) > 0)
        this->allowed = edge;
    if ((__s32)(segment->acknowledged - other->next) > 0)
        other->next = segment->acknowledged;
}

// Count what a segment brings: bytes that are sent anew for want of an acknowledgement are none.
static __always_inline void count(const struct packet *packet, const struct segment *segment, struct direction *this,
                                  struct direction *other)
{
    __u32 fin = !!(segment->flags & FIN);
    __u32 end = segment->sequence + packet->payload + fin;
    __u32 advance = end - this->next;
    struct total *total;

    if (segment->flags & ACK)
        acknowledge(segment, this, other);
    if (segment->flags & RST)
        return;
    if (this->state & STATE_DOUBTFUL)
        this->state &= ~STATE_DOUBTFUL;
    // An acknowledgement alone may have overtaken what was sent before it, a FIN maybe, which is no byte.
    if (!(packet->payload + fin) || (__s32)advance <= 0)
        return;
    this->next = end;
    advance -= fin;
    this->bytes += advance;
    total = total_of(&this->way);
    if (total)
        (&total->bytes_out)[this->way.flags / FLOW_FROM_CLIENT & 1] += advance; // As for above().
}

// What is to be done with a packet of a connection.
enum step {
    STEP_FORWARD,
    STEP_DROP,
    // The connection is no more, and
    STEP_FORWARD_LAST, // this is its last packet;
    STEP_BEGIN,        // it is a new one's;
    STEP_UNANSWERED,   // the target does not answer;
    STEP_REFUSED,      // the target refuses;
    STEP_OVER,         // the target has forgotten it, and so may have the client: what they begin shall not be this.
};

// A SYN, or a SYN with an ACK.
static __always_inline enum step follow_begin(const struct segment *segment, struct direction *this,
                                              struct direction *other)
{
    __u64 now = bpf_ktime_get_ns();
    struct target *target;

    if (this->way.flags & FLOW_FROM_CLIENT) {
        if (segment->flags & (FIN | RST | ACK))
            return STEP_FORWARD; // That begins nothing.
        if (this->state & STATE_ESTABLISHED)
            return STEP_FORWARD;
        if (segment->sequence + 1 != this->next)
            return STEP_BEGIN; // Its last attempt is no more.
        if (other->state & STATE_ANSWERED)
            return STEP_FORWARD;
        if (this->state & STATE_RESENT && now - this->begun > PATIENCE_NANOSECONDS)
            return STEP_UNANSWERED;
        this->state |= STATE_RESENT;
        return STEP_FORWARD;
    }
    // The client has the same port again, and the target a new connection: something of the last end was lost.
    if (this->state & other->state & STATE_FINISHED)
        return STEP_OVER;
    if (!(segment->flags & ACK) || this->state & STATE_ESTABLISHED || segment->acknowledged != other->next)
        return STEP_FORWARD;
    target = target_at(this->way.counter);
    if (!target)
        return STEP_DROP;
    target->failures = target->not_before = 0;
    target->answered = now;
    // Once: when it is sent again, the client's acknowledgement may change the state at this moment.
    if (!(this->state & STATE_ANSWERED)) {
        this->begun = now;
        this->state |= STATE_ANSWERED;
    }
    this->next = segment->sequence + 1;
    this->acknowledged = segment->acknowledged;
    this->allowed = segment->acknowledged + segment->window;
    this->scale = segment->scale;
    if (this->scale == NO_SCALE || other->scale == NO_SCALE)
        this->scale = other->scale = 0;
    return STEP_FORWARD;
}

// Count a connection whose client has acknowledged the target's SYN: who only sends SYNs takes no place of others.
static __always_inline void establish(const struct segment *segment, struct direction *from_client,
                                      struct direction *from_target, struct place *place)
{
    struct settings *wanted = settings_now();
    struct total *total = total_of(&from_client->way);
    __u64 taken = (from_target->begun - from_client->begun) / NANOSECONDS_IN_MICROSECOND;

    if (!wanted || !total)
        return;
    place->number |= 1;
    if (bpf_map_delete_elem(&open, place))
        return; // Another processor has a packet of the client, too, or ends it.
    from_client->acknowledged = from_client->allowed = segment->acknowledged;
    from_client->state |= STATE_ESTABLISHED;
    from_target->state |= STATE_ESTABLISHED;
    __sync_fetch_and_add(&wanted->opened, 1);
    total->opened += 1;
    total->connect[connect_bucket(taken)] += 1;
    total->connect[CONNECT_BUCKETS] += taken;
}

// An RST before there is a connection.
static __always_inline enum step follow_refusal(const struct segment *segment, const struct direction *this,
                                                const struct direction *other)
{
    // A client that does not understand an answer says so by RST, and tries again; one that has given up says so where the
    // answer expects it. A target may be asked wrongly.
    if (this->way.flags & FLOW_FROM_CLIENT)
        return other->state & STATE_ANSWERED && segment->sequence == this->next ? STEP_FORWARD_LAST : STEP_FORWARD;
    if (this->state & STATE_ANSWERED)
        return STEP_FORWARD;
    return segment->flags & ACK && segment->acknowledged == other->next ? STEP_REFUSED : STEP_FORWARD;
}

// How a connection has ended in which both have finished: by who was first.
static __always_inline __u32 reason_of(const struct direction *from_client)
{
    return from_client->state & STATE_SECOND ? REASON_TARGET_EOF : REASON_CLIENT_EOF;
}

// An RST or a FIN, or what comes after one. If the connection ends by it, *reason says how.
static __always_inline enum step follow_end(const struct segment *segment, struct direction *this,
                                            struct direction *other, __u32 *reason)
{
    __u32 from_client = this->way.flags & FLOW_FROM_CLIENT;

    if (segment->flags & RST) {
        // RFC 5961 section 3: ends believe one that is exactly where it has to be.
        if (segment->sequence != this->next && segment->sequence != other->acknowledged) {
            other->state |= STATE_DOUBTFUL;
            return STEP_FORWARD;
        }
        // Where both have finished, it stands for the last word.
        if (!(this->state & other->state & STATE_FINISHED))
            *reason = from_client ? REASON_CLIENT_RESET : REASON_TARGET_RESET;
        return STEP_FORWARD_LAST;
    }
    if (segment->flags & FIN && !(this->state & STATE_FINISHED)) {
        this->state |= STATE_FINISHED;
        if (other->state & STATE_FINISHED)
            this->state |= STATE_SECOND;
        return STEP_FORWARD;
    }
    // The last word: both have finished, and both FINs are acknowledged.
    if (segment->flags & ACK && this->state & other->state & STATE_FINISHED &&
        segment->acknowledged == other->next && other->acknowledged == this->next)
        return STEP_FORWARD_LAST;
    return STEP_FORWARD;
}

// A target that has finished first remembers addresses and ports for a while. "key" is that of what it sends.
static __always_inline void remember(const struct flow_key *key, const struct flow_key *back)
{
    struct memory memory = {.since = bpf_ktime_get_ns(), .port = back->source_port};
    struct memory *before = bpf_map_lookup_elem(&remembered, key);

    memory.client = sum_of_address(back->family, back->source);
    if (before)
        *before = memory; // Most often, the same client had the port.
    else
        bpf_map_update_elem(&remembered, key, &memory, BPF_ANY);
}

// A segment of a connection that is whole. If the connection ends by it, *reason says how.
static __always_inline enum step follow(const struct packet *packet, const struct segment *segment,
                                        struct direction *this, struct direction *other, struct place *place,
                                        __u32 *reason)
{
    __u32 from_client = this->way.flags & FLOW_FROM_CLIENT;

    if (from_client && (segment->flags & (SYN | RST | ACK)) == ACK && !(this->state & STATE_ESTABLISHED) &&
        other->state & STATE_ANSWERED && segment->acknowledged == other->next)
        establish(segment, this, other, place);
    if (segment->flags & SYN)
        return follow_begin(segment, this, other);
    if (!(this->state & STATE_ESTABLISHED))
        return segment->flags & RST ? follow_refusal(segment, this, other) : STEP_FORWARD;
    if (!is_credible(packet, segment, other))
        return STEP_FORWARD;
    count(packet, segment, this, other);
    // Most packets are data and acknowledgements.
    if (segment->flags & (FIN | RST) || this->state & STATE_FINISHED)
        return follow_end(segment, this, other, reason);
    return STEP_FORWARD;
}

// Find out what a segment means, and take its connection out when that has ended. "way" is a copy of this->way.
static __always_inline enum step attend(const struct packet *packet, const struct segment *segment, __u32 number,
                                        struct direction *this, const struct flow *way)
{
    // What begins and what has ended is timed exactly, elsewhere. Reading the clock is a quarter of what a packet costs; its
    // time at the last tick will do for the rest.
    __u64 now = bpf_ktime_get_coarse_ns();
    __u32 reason, from_client = way->flags & FLOW_FROM_CLIENT;
    const struct flow_key *key = &packet->key;
    struct scratch *scratch = scratch_now();
    struct direction *other = direction_at(number ^ 1);
    struct flow_key back;
    enum step step;
    __u64 begun;

    if (!scratch || !other)
        return STEP_DROP;
    // First: if its place becomes another connection's from here on, that has begun at another time.
    begun = *(volatile __u64 *)(from_client ? &this->begun : &other->begun);
    scratch->place.number = number;
    scratch->place.begun = begun;
    if (!begun || !leads_back(other, key))
        return STEP_DROP; // It is being put in or taken out, by another processor or by user space.
    this->last = now;
    reason = reason_of(from_client ? this : other);
    step = follow(packet, segment, this, other, &scratch->place, &reason);
    if (step == STEP_FORWARD || step == STEP_DROP)
        return step;
    // Read back from memory, these are no constants to the verifier, which would follow each on a way of its own; and as
    // for above().
    scratch->step = step;
    scratch->reason = reason;
    step = *(volatile __u64 *)&scratch->step;
    reason = *(volatile __u64 *)&scratch->reason;
    if (step == STEP_UNANSWERED || step == STEP_REFUSED)
        distrust(way, step == STEP_UNANSWERED, this->begun, now);
    turn(way, key, &back);
    // Before its port is free.
    if (step == STEP_FORWARD_LAST && !from_client && !(segment->flags & RST))
        remember(key, &back);
    take_out(from_client ? key : &back, from_client ? &back : key, &scratch->place, from_client ? this : other,
             from_client ? other : this, reason);
    return step;
}

// Look at a packet of a connection. Return what is to be done with it, or STEP_DROP with a reason.
static __always_inline enum step look(const struct __sk_buff *skb, const struct packet *packet,
                                      const struct segment *segment, __u32 number, struct direction *this,
                                      const struct flow *way, int *why)
{
    *why = WHY_FAULT;
    if (packet->has_options)
        *why = WHY_OPTIONS;
    else if (packet->is_fragment)
        *why = WHY_FRAGMENT;
    else if (packet->is_malformed)
        *why = WHY_MALFORMED;
    else if (!(way->flags & FLOW_TO_LOCAL) && packet->hop_limit <= 1)
        *why = WHY_HOP_LIMIT;
    else if (way->mtu && length_of(skb, packet) > way->mtu)
        *why = WHY_TOO_BIG;
    if (*why != WHY_FAULT)
        return STEP_DROP;
    return attend(packet, segment, number, this, way);
}

// Tell the sender of a packet that it is too long; "way" is that of the packet. As in Linux, there is no limit to such
// answers: it would break what they are for. Strangers do not get any.
static __always_inline int refuse_length(struct __sk_buff *skb, __u32 network, const struct packet *packet,
                                         const struct segment *segment, __u32 number, const struct flow *way)
{
    struct direction *other = direction_at(number ^ 1);
    struct flow back = {};
    int result;

    if (!other || !leads_back(other, &packet->key) || !(other->state & STATE_ESTABLISHED) ||
        !is_credible(packet, segment, other))
        return drop(WHY_TOO_BIG);
    back.interface = other->way.interface;
    back.flags = other->way.flags;
    result = answer_too_big(skb, network, packet, way->mtu);
    if (result != CHANGED)
        return drop(result);
    leave(WHY_TOO_BIG);
    if (!network && !is_here(skb, &back) && bpf_skb_change_head(skb, ETH_HLEN, 0))
        return drop(WHY_BROKEN);
    return pass(skb, &back);
}

static __always_inline int handle_tcp(struct __sk_buff *skb, __u32 network, struct packet *packet)
{
    struct settings *wanted = settings_now();
    enum step step = STEP_BEGIN;
    struct segment segment = {};
    struct direction *this;
    struct scratch *scratch;
    struct flow way;
    __u32 number, longest;
    int result, why;

    if (!wanted || !(wanted->flags & SETTING_TCP))
        return LEAVE;
    if (read_segment(skb, packet, &segment))
        return LEAVE;
    this = find(&packet->key, &number);
    if (this) {
        way = this->way;
        longest = this->longest;
        step = look(skb, packet, &segment, number, this, &way, &why);
    } else if ((segment.flags & (SYN | ACK)) == (SYN | ACK)) {
        return note_answer(packet);
    } else if ((segment.flags & (SYN | RST | FIN)) != SYN) {
        return LEAVE;
    }
    if (step == STEP_DROP)
        return why == WHY_TOO_BIG ? refuse_length(skb, network, packet, &segment, number, &way) : drop(why);
    if (step == STEP_REFUSED)
        return drop(WHY_REFUSED); // The client tries again: by the sockets, and at other targets.
    if (step == STEP_UNANSWERED)
        return leave(WHY_TARGET);
    if (step == STEP_OVER)
        return drop(WHY_FAULT); // The client sends its SYN again.
    if (step == STEP_BEGIN) {
        result = begin(packet, &segment);
        if (result == NOT_OURS)
            return LEAVE;
        if (result != CHANGED)
            return leave(result);
        // Looked up anew: the verifier, without CAP_PERFMON, would go on with all that begin() knows.
        scratch = scratch_now();
        if (!scratch)
            return LEAVE;
        this = direction_at(scratch->place.number);
        if (!this)
            return LEAVE;
        way = this->way;
        longest = this->longest;
    }

    if (segment.flags & SYN)
        limit_segments(skb, network, packet, &segment, longest);
    result = change(skb, network, packet, &way);
    if (result != CHANGED)
        return drop(result);
    return pass(skb, &way);
}
