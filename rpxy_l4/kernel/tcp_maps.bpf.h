// SPDX-License-Identifier: MIT
//
// TCP: what is known of connections, clients and targets, and what is counted.

#pragma once

#include "packet.bpf.h"

// One direction of a connection.
struct direction {
    struct flow way;
    __u32 state; // STATE_*
    __u32 next;  // Sequence number behind all that this direction has sent, of what the other can have accepted,
    __u32 acknowledged; // what it has acknowledged last,
    __u32 allowed;      // and up to where the other may send: that, and its window.
    __u32 scale;        // Of its window (RFC 7323); NO_SCALE before that is known.
    __u32 longest;      // Packet that both ways take; 0 is any length.
    __u64 begun; // CLOCK_MONOTONIC in nanoseconds: of the first SYN; in the other direction, of its answer. The client's is
                 // 0 before both keys are known, and after the end.
    __u64 last;  // At the clock's last tick, so maybe before that.
    __u64 bytes;
    __u64 zeros[3]; // Two cache lines each.
};

#define NO_SCALE 255
#define MOST_SCALE 14

#define STATE_ESTABLISHED 1 // Its client has acknowledged the target's SYN.
#define STATE_FINISHED 2 // A FIN has passed,
#define STATE_SECOND 4   // as the second of two.
#define STATE_RESENT 8   // The SYN was sent again.
#define STATE_DOUBTFUL 16 // An RST has come to it that it may have ignored, and nothing from it since.
#define STATE_ANSWERED 32 // The target's SYN has passed. Of its direction.

// How a target is chosen.
enum choosing {
    CHOOSE_NONE,       // New connections are left to the sockets.
    CHOOSE_BY_ADDRESS, // Of the client; the bucket of balance.py.
    CHOOSE_BY_SOCKET,  // And its port.
    CHOOSE_ANY,        // One of the first so many choices.
};

// What user space has learned of a client.
struct client {
    __u64 epoch;
    __u64 until; // CLOCK_MONOTONIC in nanoseconds.
    __u32 interface;
    __u32 mtu;
    __u32 is_local;
    __u32 zero;
};

struct target {
    __be32 address[4];
    __be32 source[4]; // What it sees as its client.
    __be16 port;
    __u8 family; // 0: none.
    __u8 is_local;
    __u32 interface;
    __u32 mtu;
    __u32 series; // User space's.
    __u64 proven; // It has answered.
    __u64 not_before; // When it is to be believed again, CLOCK_MONOTONIC in nanoseconds.
    __u64 failures;   // That it did not answer a SYN, in a row.
    __u64 answered;   // When it last answered one, CLOCK_MONOTONIC in nanoseconds.
};

#define SESSION_BUCKETS 11 // SESSION_BUCKETS and CONNECT_BUCKETS of metrics/layout.py, and one for what is above.
#define CONNECT_BUCKETS 12

enum reason {
    REASON_CLIENT_EOF,
    REASON_TARGET_EOF,
    REASON_CLIENT_RESET,
    REASON_TARGET_RESET,
    REASON_COUNT,
};

// What has passed of the connections to a target, counted by each processor for itself.
struct total {
    __u64 opened;
    __u64 refused;
    __u64 unanswered;
    __u64 untold; // Ends for which there was no room.
    __u64 bytes_out;
    __u64 bytes_in;
    __u64 closed[REASON_COUNT];
    __u64 connect[CONNECT_BUCKETS + 1]; // Durations, and their sum in microseconds.
    __u64 session[SESSION_BUCKETS + 1];
};

// What is told of a connection that has ended.
struct end {
    struct flow_key key; // From its client.
    __u32 target;
    __u32 reason;
    __u64 begun;
    __u64 connected;
    __u64 ended;
    __u64 bytes_in;
    __u64 bytes_out;
};

// Which direction packets are of: its number.
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __type(key, struct flow_key);
    __type(value, __u32);
    __uint(max_entries, 2); // User space decides, here and below.
} connections SEC(".maps");

// By number. Two make a connection: n is what its client sends, an even number, and n ^ 1 what its target does.
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __type(key, __u32);
    __type(value, struct direction);
    __uint(max_entries, 2);
    __uint(map_flags, BPF_F_MMAPABLE);
} directions SEC(".maps");

// A connection: its number, and when it began; the number is another one's later.
struct place {
    __u32 number;
    __u32 begun; // The lower half of the client's.
};

// Those that have not ended, by their even numbers: whoever removes one from here ends it, be it on another processor or
// user space; nobody else removes its keys, and makes its number vacant. Keys would not do for that: the same may be a new
// connection's. And those that are not established as yet, by their odd ones: whoever removes one counts it as that.
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __type(key, struct place);
    __type(value, __u32);
    __uint(max_entries, 1);
} open SEC(".maps");

// Even numbers that no connection has. The one that has been free for the longest time is taken first, and there are more
// of them than connections: whoever has found a connection that ends in this moment is done with it before its place is
// another one's.
struct {
    __uint(type, BPF_MAP_TYPE_QUEUE);
    __type(value, __u32);
    __uint(max_entries, 1);
} vacant SEC(".maps");

static __always_inline struct direction *direction_at(__u32 number)
{
    return bpf_map_lookup_elem(&directions, &number);
}

// The direction whose packets have this key, and its number.
static __always_inline struct direction *find(const struct flow_key *key, __u32 *number)
{
    __u32 *found = bpf_map_lookup_elem(&connections, key);

    if (!found)
        return NULL;
    *number = *found;
    return direction_at(*number);
}

// Whether a direction leads to where packets of this key come from: so the other one has this key, or had it last. It may
// have ended since it was found, and its place be another connection's.
static __always_inline int leads_back(const struct direction *other, const struct flow_key *key)
{
    const __be32 *there = other->way.destination, *from = key->source;

    return !((there[0] ^ from[0]) | (there[1] ^ from[1]) | (there[2] ^ from[2]) | (there[3] ^ from[3]) |
             (other->way.destination_port ^ key->source_port) | (other->way.source_port ^ key->destination_port));
}

// By client and listener, without the client's port.
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __type(key, struct flow_key);
    __type(value, struct client);
    __uint(max_entries, 1);
} clients SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __type(key, __u32);
    __type(value, struct target);
    __uint(max_entries, 1);
    __uint(map_flags, BPF_F_MMAPABLE);
} targets SEC(".maps");

// Which target an answer comes from: by its addresses, without our port.
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __type(key, struct flow_key);
    __type(value, __u32);
    __uint(max_entries, 1);
} answers SEC(".maps");

// A target for each bucket of clients.
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __type(key, __u32);
    __type(value, __u32);
    __uint(max_entries, 1);
} choices SEC(".maps");

// What a target remembers for a while (TIME_WAIT): since when, and of whom.
struct memory {
    __u64 since; // May be later than now: user space knows that the port is in use.
    __u64 client; // The sum over its address,
    __u32 port;   // and its port.
    __u32 zero;
};

// By the key of what the target sent.
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __type(key, struct flow_key);
    __type(value, struct memory);
    __uint(max_entries, 1);
} remembered SEC(".maps");

// What is too much for the stack.
struct scratch {
    struct flow_key back;
    struct place place;
    __u64 reason;
    __u64 step;
    __u64 headers[16]; // See narrow.bpf.h.
};

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __type(key, __u32);
    __type(value, struct scratch);
    __uint(max_entries, 1);
} scratches SEC(".maps");

static __always_inline struct scratch *scratch_now(void)
{
    __u32 index = 0;

    return bpf_map_lookup_elem(&scratches, &index);
}

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __type(key, __u32);
    __type(value, struct total);
    __uint(max_entries, 1);
} totals SEC(".maps");

// User space's: how much of the totals it has counted. It has this memory mapped.
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __type(key, __u32);
    __type(value, struct total);
    __uint(max_entries, 1);
    __uint(map_flags, BPF_F_MMAPABLE);
} told SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __type(value, struct end); // What a record is; the map itself knows no values.
    __uint(max_entries, 4096);
} ends SEC(".maps");
