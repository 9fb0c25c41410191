// SPDX-License-Identifier: MIT
//
// TCP: connections to a listener where nothing is to be detected. There are no sockets of theirs: the SYN goes to a target
// at once, from a port that this program chooses, and both ends speak to each other.

#pragma once

#include "tcp_begin.bpf.h"

// A target has refused a SYN, or has not answered the second one. Trust it no more, before user space has reached it again.
// Twice as long with each time that it is only silent: it may be that answers to our ports, and not to those of sockets, are
// lost somewhere.
static __always_inline void distrust(const struct connection *this, int was_silent)
{
    struct target *target = target_at(this->way.counter);
    struct total *total = total_of(&this->way);
    __u64 failures, was_proven;

    if (!target || !total)
        return;
    was_proven = target->proven;
    target->proven = 0;
    if (!was_silent) {
        total->refused += 1;
        return;
    }
    total->unanswered += 1;
    if (!was_proven)
        return; // Others had no answer at the same time: that is one failure.
    failures = target->failures;
    target->not_before = bpf_ktime_get_ns() + (NANOSECONDS << (failures < MOST_FAILURES ? failures : MOST_FAILURES));
    target->failures = failures + 1;
}

// Forget a connection that has not come about. "key" is that of what the client sends.
static __always_inline void give_up(const struct flow_key *key)
{
    struct settings *wanted = settings_now();

    if (!bpf_map_delete_elem(&open, key) && wanted)
        __sync_fetch_and_add(&wanted->over, 1);
}

// Count a connection as ended, once, and tell user space. "key" is that of what the client sends.
static __always_inline void end(const struct flow_key *key, struct connection *from_client,
                                struct connection *from_target, __u32 reason)
{
    struct settings *wanted = settings_now();
    struct total *total = total_of(&from_client->way);
    __u64 now = bpf_ktime_get_ns(), taken;
    struct end *record;

    from_client->state |= STATE_OVER;
    from_target->state |= STATE_OVER;
    // Whoever takes it out counts, be it on another processor at this moment, or user space.
    if (bpf_map_delete_elem(&open, key) || !wanted || !total)
        return;
    taken = (now - from_client->begun) / NANOSECONDS_IN_MICROSECOND;
    // Read back from memory, it is no constant to the verifier: as for above().
    from_client->reason = reason;
    reason = *(volatile __u32 *)&from_client->reason;
    total->closed[reason & 3] += 1;
    total->session[session_bucket(taken)] += 1;
    total->session[SESSION_BUCKETS] += taken;
    __sync_fetch_and_add(&wanted->over, 1);
    __sync_fetch_and_add(&wanted->closed, 1);
    if (!(wanted->flags & SETTING_TELL))
        return;
    record = bpf_ringbuf_reserve(&ends, sizeof(*record), 0);
    if (!record) {
        total->untold += 1;
        return;
    }
    record->key = *key;
    record->target = from_client->way.counter;
    record->reason = reason;
    record->begun = from_client->begun;
    record->connected = from_target->begun;
    record->ended = now;
    record->bytes_in = from_client->bytes;
    record->bytes_out = from_target->bytes;
    bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

// Whether its receiver can take a segment for one of the connection. Anybody can send packets with its addresses and ports.
static __always_inline int is_credible(const struct packet *packet, const struct segment *segment,
                                       const struct connection *other)
{
    __u32 end = segment->sequence + packet->payload + !!(segment->flags & FIN);
    __u32 window = other->allowed - other->acknowledged;

    if ((__s32)(end - other->allowed) > SLACK || (__s32)(other->acknowledged - end) > (__s32)(window + SLACK))
        return 0;
    return !(segment->flags & ACK) || (__s32)(segment->acknowledged - other->next) <= 0;
}

// Note what is acknowledged, and how much more may come.
static __always_inline void acknowledge(const struct segment *segment, struct connection *this)
{
    __u32 edge = segment->acknowledged + (segment->window << (this->scale & 15));

    if ((__s32)(segment->acknowledged - this->acknowledged) > 0)
        this->acknowledged = segment->acknowledged;
    if ((__s32)(edge - this->allowed) > 0)
        this->allowed = edge;
}

// Count what a segment brings: bytes that are sent anew for want of an acknowledgement are none.
static __always_inline void count(const struct packet *packet, const struct segment *segment, struct connection *this)
{
    __u32 fin = !!(segment->flags & FIN);
    __u32 advance = segment->sequence + packet->payload + fin - this->next;
    struct total *total;

    if (segment->flags & ACK)
        acknowledge(segment, this);
    if (segment->flags & RST)
        return;
    if (this->state & STATE_DOUBTFUL)
        this->state &= ~STATE_DOUBTFUL;
    if ((__s32)advance <= 0)
        return;
    this->next += advance;
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
    STEP_REFUSED,      // the target refuses.
};

// A SYN, or a SYN with an ACK.
static __always_inline enum step follow_begin(const struct segment *segment, struct connection *this,
                                              struct connection *other, __u64 now)
{
    struct target *target;

    if (this->way.flags & FLOW_FROM_CLIENT) {
        if (this->state & STATE_OVER)
            return STEP_BEGIN; // The client has the same port again after an end of which something was lost.
        if (this->state & STATE_ESTABLISHED || other->state & STATE_ANSWERED)
            return STEP_FORWARD;
        if (segment->sequence + 1 != this->next)
            return STEP_BEGIN; // Its last attempt is no more.
        if (this->state & STATE_RESENT && now - this->begun > PATIENCE_NANOSECONDS)
            return STEP_UNANSWERED;
        this->state |= STATE_RESENT;
        return STEP_FORWARD;
    }
    if (!(segment->flags & ACK) || this->state & STATE_ESTABLISHED)
        return STEP_FORWARD;
    target = target_at(this->way.counter);
    if (!target)
        return STEP_DROP;
    if (this->state & STATE_ANSWERED || segment->acknowledged != other->next)
        return STEP_FORWARD;
    target->failures = target->not_before = 0;
    this->state |= STATE_ANSWERED;
    this->begun = now;
    this->next = segment->sequence + 1;
    this->acknowledged = segment->acknowledged;
    this->allowed = segment->acknowledged + segment->window;
    this->scale = segment->scale;
    if (this->scale == NO_SCALE || other->scale == NO_SCALE)
        this->scale = other->scale = 0;
    return STEP_FORWARD;
}

// Count a connection whose client has acknowledged the target's SYN: who only sends SYNs takes no place of others.
static __always_inline void establish(const struct segment *segment, struct connection *from_client,
                                      struct connection *from_target)
{
    struct settings *wanted = settings_now();
    struct total *total = total_of(&from_client->way);
    __u64 taken = (from_target->begun - from_client->begun) / NANOSECONDS_IN_MICROSECOND;

    if (!wanted || !total)
        return;
    from_client->acknowledged = from_client->allowed = segment->acknowledged;
    from_client->state |= STATE_ESTABLISHED;
    from_target->state |= STATE_ESTABLISHED;
    __sync_fetch_and_add(&wanted->opened, 1);
    total->opened += 1;
    total->connect[connect_bucket(taken)] += 1;
    total->connect[CONNECT_BUCKETS] += taken;
}

// An RST before there is a connection.
static __always_inline enum step follow_refusal(const struct segment *segment, const struct connection *this,
                                                const struct connection *other)
{
    // A client that does not understand an answer says so by RST, and tries again; and a target may be asked wrongly.
    if (this->way.flags & FLOW_FROM_CLIENT || this->state & STATE_ANSWERED)
        return STEP_FORWARD;
    return segment->flags & ACK && segment->acknowledged == other->next ? STEP_REFUSED : STEP_FORWARD;
}

// An RST or a FIN, or what comes after one. If the connection ends by it, *reason says how.
static __always_inline enum step follow_end(const struct segment *segment, struct connection *this,
                                            struct connection *other, __u32 *reason)
{
    __u32 from_client = this->way.flags & FLOW_FROM_CLIENT;

    if (segment->flags & RST) {
        // RFC 5961 section 3: ends believe one that is exactly where it has to be.
        if (segment->sequence != this->next && segment->sequence != other->acknowledged) {
            other->state |= STATE_DOUBTFUL;
            return STEP_FORWARD;
        }
        *reason = from_client ? REASON_CLIENT_RESET : REASON_TARGET_RESET;
        return STEP_FORWARD_LAST;
    }
    if (segment->flags & FIN && !(this->state & STATE_FINISHED)) {
        this->state |= STATE_FINISHED;
        if (other->state & STATE_FINISHED) {
            this->state |= STATE_SECOND;
            *reason = from_client ? REASON_TARGET_EOF : REASON_CLIENT_EOF;
        }
        return STEP_FORWARD;
    }
    // The last word: both have finished, and both FINs are acknowledged.
    if (segment->flags & ACK && this->state & other->state & STATE_FINISHED &&
        segment->acknowledged == other->next && other->acknowledged == this->next)
        return STEP_FORWARD_LAST;
    return STEP_FORWARD;
}

static __always_inline enum step follow(const struct packet *packet, const struct segment *segment,
                                        struct connection *this, const struct flow_key *back, __u64 now)
{
    struct connection *other = bpf_map_lookup_elem(&connections, back);
    __u32 reason = REASON_COUNT, from_client = this->way.flags & FLOW_FROM_CLIENT;
    enum step step = STEP_FORWARD;

    if (!other) {
        if (!from_client || (segment->flags & (SYN | ACK)) != SYN)
            return STEP_DROP;
        // Half of what two processors were about at once.
        give_up(&packet->key);
        bpf_map_delete_elem(&connections, &packet->key);
        return STEP_BEGIN;
    }
    if (from_client && (segment->flags & (SYN | RST | ACK)) == ACK && !(this->state & STATE_ESTABLISHED) &&
        other->state & STATE_ANSWERED && segment->acknowledged == other->next)
        establish(segment, this, other);
    if (segment->flags & SYN) {
        step = follow_begin(segment, this, other, now);
    } else if (!(this->state & STATE_ESTABLISHED)) {
        if (segment->flags & RST)
            step = follow_refusal(segment, this, other);
    } else if (is_credible(packet, segment, other)) {
        count(packet, segment, this);
        // Most packets are data and acknowledgements.
        if (segment->flags & (FIN | RST) || this->state & STATE_FINISHED)
            step = follow_end(segment, this, other, &reason);
    }
    if (step == STEP_FORWARD && reason == REASON_COUNT)
        return step;
    if (reason != REASON_COUNT)
        end(from_client ? &packet->key : back, from_client ? this : other, from_client ? other : this, reason);
    if (step == STEP_UNANSWERED || step == STEP_REFUSED)
        distrust(this, step == STEP_UNANSWERED);
    if (step >= STEP_FORWARD_LAST)
        give_up(from_client ? &packet->key : back); // Unless it was established, and has ended.
    if (step == STEP_BEGIN || step == STEP_UNANSWERED || step == STEP_REFUSED) {
        bpf_map_delete_elem(&connections, back);
        bpf_map_delete_elem(&connections, &packet->key);
    }
    return step;
}

// Forget a connection whose last packet has passed.
static __always_inline void forget(const struct packet *packet, const struct connection *this,
                                   const struct flow_key *back, __u32 flags, __u64 now)
{
    struct memory memory = {.since = now, .port = back->source_port};

    // A target that has finished first remembers addresses and ports for a while.
    if (!(this->way.flags & FLOW_FROM_CLIENT) && !(flags & RST)) {
        memory.client = sum_of_address(back->family, back->source);
        bpf_map_update_elem(&remembered, &packet->key, &memory, BPF_ANY);
    }
    bpf_map_delete_elem(&connections, back);
    bpf_map_delete_elem(&connections, &packet->key);
}

// Look at a packet of a connection. Return what is to be done with it, or STEP_DROP with a reason.
static __always_inline enum step look(const struct __sk_buff *skb, const struct packet *packet,
                                      const struct segment *segment, struct connection *this, __u64 now, int *why)
{
    struct flow_key back;

    *why = WHY_FAULT;
    if (packet->has_options)
        *why = WHY_OPTIONS;
    else if (packet->is_fragment)
        *why = WHY_FRAGMENT;
    else if (packet->is_malformed)
        *why = WHY_MALFORMED;
    else if (!(this->way.flags & FLOW_TO_LOCAL) && packet->hop_limit <= 1)
        *why = WHY_HOP_LIMIT;
    else if (this->way.mtu && length_of(skb, packet) > this->way.mtu)
        *why = WHY_TOO_BIG;
    if (*why != WHY_FAULT)
        return STEP_DROP;
    this->last = now;
    turn(&this->way, &packet->key, &back);
    return follow(packet, segment, this, &back, now);
}

static __always_inline int handle_tcp(struct __sk_buff *skb, __u32 network, struct packet *packet)
{
    struct settings *wanted = settings_now();
    struct connection *this, *other;
    enum step step = STEP_BEGIN;
    struct segment segment = {};
    struct flow_key back;
    int result, why;
    __u64 now;

    if (!wanted || !(wanted->flags & SETTING_TCP))
        return LEAVE;
    now = bpf_ktime_get_ns();
    if (read_segment(skb, packet, &segment))
        return LEAVE;
    this = bpf_map_lookup_elem(&connections, &packet->key);
    if (this)
        step = look(skb, packet, &segment, this, now, &why);
    else if ((segment.flags & (SYN | ACK)) == (SYN | ACK))
        return note_answer(packet);
    else if ((segment.flags & (SYN | RST | FIN)) != SYN)
        return LEAVE;
    if (step == STEP_DROP)
        return drop(why);
    if (step == STEP_REFUSED)
        return drop(WHY_REFUSED); // The client tries again: by the sockets, and at other targets.
    if (step == STEP_UNANSWERED)
        return leave(WHY_TARGET);
    if (step == STEP_BEGIN) {
        result = begin(packet, &segment);
        if (result == NOT_OURS)
            return LEAVE;
        if (result != CHANGED)
            return leave(result);
        this = bpf_map_lookup_elem(&connections, &packet->key);
        if (!this)
            return drop(WHY_FAULT); // It comes once more.
    }

    turn(&this->way, &packet->key, &back);
    if (segment.flags & SYN) {
        other = bpf_map_lookup_elem(&connections, &back);
        if (other)
            limit_segments(skb, network, packet, &segment, shorter(this->way.mtu, other->way.mtu));
    }
    result = change(skb, network, packet, &this->way);
    if (result != CHANGED)
        return drop(result);
    result = pass(skb, &this->way);
    if (step == STEP_FORWARD_LAST)
        forget(packet, this, &back, segment.flags, now);
    return result;
}
