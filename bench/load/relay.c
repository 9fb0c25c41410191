/* A relay that is little more than its system calls: those that ours makes for ordinary sessions on a default route, in
 * the same order. What it costs is the kernel's; what ours costs beyond that is what the program adds.
 *
 * --tcp N | --udp N   where to listen on 127.0.0.1
 * --target N          where the target listens on 127.0.0.1
 * --idle N            seconds after which a UDP flow is forgotten
 * --version           which compiler it is by
 *
 * Left out is what makes no system call for an ordinary session: routes, balancing, limits, deadlines, counters, logs.
 * A TCP session ends at the first error, without delivering what the other end may still have sent.
 */
#include "common.h"
#include <sys/ioctl.h>

/* As in ours, where the reasons are. */
enum {
    READY = 512,
    BACKLOG = 4096,
    ACCEPTS = 64,
    BUFFER = 64 << 10,
    BULK = BUFFER / 2,
    PIPE = 1 << 20,
    TURN = 1 << 20,
    IDLE_PIPES = 16,
    MESSAGES = 64,
    BULK_MESSAGES = 16,
    BUSY = 256 << 10,
    ROUNDS = 4,
    LARGE = 1000,
    LARGE_IN_A_ROW = 8,
    DATAGRAM = 65535,
    STRIDE = DATAGRAM + 1 + 192,
    MOST_JOINED = 1500,
    MOST_BYTES = 65507,
    MOST_PARTS = 64,
    FLOW_BITS = 14,
};
static const uint32_t ENDED = EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR, READABLE = EPOLLIN | ENDED,
                      BROKEN = EPOLLHUP | EPOLLERR, WRITABLE = EPOLLOUT | BROKEN,
                      BOTH_WAYS = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET;

/* Who is told about a descriptor: the beginning of what belongs to it. */
struct owner {
    void (*ready)(struct owner *owner, uint32_t mask);
};

static int epoll, listener;
static struct sockaddr_in target;
static int64_t batch_time;

/* TCP */

enum outcome { WAIT, AGAIN, DONE, LOST };
enum stage { CONNECT, RELAY, CLOSED };

struct direction {
    struct owner owner; /* of the source */
    struct session *session;
    struct direction *other;
    int source, sink;
    bool readable; /* the source may have something to read */
    bool hup;      /* its end is near: a short read does not mean that there is no more */
    bool bulk, ended, done;
    const char *pending; /* what was read and not written: in the buffer of all, or in memory of its own */
    size_t length;
    char *kept;
    int pipe[2]; /* -1: none */
    size_t piped;
};

struct session {
    struct direction up, down;
    enum stage stage;
    uint32_t client_mask; /* what the client was ready for while there was no target */
    bool waits_for_turn;
    struct session *next_turn, *next_closing;
};

static char buffer[BUFFER];
static int idle_pipes[IDLE_PIPES][2], idle_pipe_count;
static struct session *closing, *turns, **last_turn = &turns;

static bool take_pipe(int pipe[2])
{
    if (idle_pipe_count) {
        memcpy(pipe, idle_pipes[--idle_pipe_count], sizeof idle_pipes[0]);
        return true;
    }
    if (pipe2(pipe, O_NONBLOCK | O_CLOEXEC)) {
        pipe[0] = -1;
        return false;
    }
    fcntl(pipe[1], F_SETPIPE_SZ, PIPE);
    return true;
}

static void give_back_pipe(struct direction *direction)
{
    int *pipe = direction->pipe;
    if (pipe[0] < 0)
        return;
    if (!direction->piped && idle_pipe_count < IDLE_PIPES) {
        memcpy(idle_pipes[idle_pipe_count++], pipe, sizeof idle_pipes[0]);
    } else {
        close(pipe[0]);
        close(pipe[1]);
    }
    pipe[0] = -1;
    direction->piped = 0;
}

static void stop(struct direction *direction)
{
    direction->done = true;
    free(direction->kept);
    direction->kept = NULL;
    direction->length = 0;
    give_back_pipe(direction);
}

static void finish(struct session *session)
{
    if (session->stage == CLOSED)
        return;
    session->stage = CLOSED;
    stop(&session->up);
    stop(&session->down);
    session->next_closing = closing;
    closing = session;
}

/* Not earlier than at the end of a batch: it may hold events of sessions that have ended in it, and their descriptors
 * must not be those of new ones. */
static void close_finished(void)
{
    while (closing) {
        struct session *session = closing;
        closing = session->next_closing;
        close(session->up.source);
        if (session->down.source >= 0)
            close(session->down.source);
        if (!session->waits_for_turn)
            free(session);
    }
}

static bool is_blocked(struct direction *direction)
{
    return direction->length || direction->piped;
}

static bool would_block(struct direction *direction)
{
    if (errno != EAGAIN)
        return false;
    if (direction->length && !direction->kept) {
        direction->kept = allocate(1, direction->length);
        memcpy(direction->kept, direction->pending, direction->length);
        direction->pending = direction->kept;
    }
    return true;
}

/* DONE: nothing waits for the sink any more. */
static enum outcome flush(struct direction *direction)
{
    while (direction->length) {
        ssize_t amount = write(direction->sink, direction->pending, direction->length);
        if (amount < 0)
            return would_block(direction) ? WAIT : LOST;
        direction->pending += amount;
        direction->length -= amount;
    }
    free(direction->kept);
    direction->kept = NULL;
    while (direction->piped) {
        ssize_t amount = splice(direction->pipe[0], NULL, direction->sink, NULL, direction->piped,
                                SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (amount < 0)
            return would_block(direction) ? WAIT : LOST;
        direction->piped -= amount;
    }
    return DONE;
}

static ssize_t splice_more(struct direction *direction)
{
    if (direction->pipe[0] < 0 && !take_pipe(direction->pipe)) {
        direction->bulk = false;
        return 0;
    }
    ssize_t amount =
        splice(direction->source, NULL, direction->pipe[1], NULL, PIPE, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (amount < 0)
        return amount;
    direction->piped = amount;
    direction->ended = amount == 0;
    direction->bulk = amount >= BULK;
    return amount;
}

static ssize_t read_more(struct direction *direction)
{
    ssize_t amount = read(direction->source, buffer, sizeof buffer);
    if (amount < 0)
        return amount;
    direction->pending = buffer;
    direction->length = amount;
    direction->ended = amount == 0;
    direction->bulk = amount == BUFFER;
    direction->readable = direction->bulk || direction->hup;
    return amount;
}

static enum outcome pump(struct direction *direction)
{
    ssize_t left = TURN;
    for (;;) {
        enum outcome flushed = is_blocked(direction) ? flush(direction) : DONE;
        if (flushed != DONE)
            return flushed;
        if (direction->ended) {
            stop(direction);
            /* With both ends reached, closing says the same. */
            return direction->other->done || !shutdown(direction->sink, SHUT_WR) ? DONE : LOST;
        }
        if (!direction->readable) {
            give_back_pipe(direction);
            return WAIT;
        }
        if (left <= 0)
            return AGAIN;
        ssize_t amount = direction->bulk ? splice_more(direction) : read_more(direction);
        if (amount >= 0)
            left -= amount;
        else if (errno == EAGAIN)
            direction->readable = false;
        else
            return LOST;
    }
}

static void move(struct direction *direction)
{
    struct session *session = direction->session;
    enum outcome outcome = pump(direction);
    if (outcome == LOST || (outcome == DONE && direction->other->done)) {
        finish(session);
    } else if (outcome == AGAIN && !session->waits_for_turn) {
        session->waits_for_turn = true;
        session->next_turn = NULL;
        *last_turn = session;
        last_turn = &session->next_turn;
    }
}

/* Go on with those who gave way to others, once each. */
static void take_turns(void)
{
    struct session *session = turns, *next;
    turns = NULL;
    last_turn = &turns;
    for (; session; session = next) {
        next = session->next_turn;
        session->waits_for_turn = false;
        if (session->stage == CLOSED) {
            free(session);
            continue;
        }
        struct direction *directions[] = {&session->up, &session->down};
        for (int i = 0; i < 2; i++)
            if (session->stage == RELAY && directions[i]->readable && !directions[i]->done)
                move(directions[i]);
    }
}

static void connected(struct session *session, uint32_t mask)
{
    struct direction *up = &session->up;
    if (mask & BROKEN) {
        finish(session);
        return;
    }
    session->stage = RELAY;
    up->readable = session->client_mask & READABLE;
    up->hup = session->client_mask & ENDED;
    if (up->readable)
        move(up);
}

static void stream_ready(struct owner *owner, uint32_t mask)
{
    struct direction *direction = (struct direction *)owner, *other = direction->other;
    struct session *session = direction->session;
    bool is_up = direction == &session->up;
    if (session->stage == CONNECT && is_up) {
        session->client_mask |= mask;
        if (mask & BROKEN)
            finish(session);
        return;
    }
    if (session->stage == CONNECT && mask & WRITABLE)
        connected(session, mask);
    if (session->stage == RELAY && mask & READABLE) {
        direction->readable = true;
        direction->hup |= (mask & ENDED) != 0;
        if (!direction->done)
            move(direction);
    }
    if (session->stage == RELAY && mask & WRITABLE && is_blocked(other))
        move(other);
    /* Reading would say so, but nothing is read: after an orderly end, or while the target takes nothing. */
    if (session->stage == RELAY && mask & EPOLLERR && (direction->done || (is_up && is_blocked(direction))))
        finish(session);
}

static void begin_session(int client)
{
    struct session *session = allocate(1, sizeof *session);
    struct direction *up = &session->up, *down = &session->down;
    *up = (struct direction){{stream_ready}, session, down, .source = client, .sink = -1, .pipe = {-1, -1}};
    *down = (struct direction){{stream_ready}, session, up, .source = -1, .sink = client, .pipe = {-1, -1}};
    watch(epoll, client, BOTH_WAYS, up);
    down->source = up->sink = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (down->source < 0) {
        finish(session);
        return;
    }
    set_option(down->source, IPPROTO_TCP, TCP_NODELAY, 1);
    if (connect(down->source, (struct sockaddr *)&target, sizeof target) && errno != EINPROGRESS)
        finish(session);
    else
        watch(epoll, down->source, BOTH_WAYS, down);
}

static void accept_ready(struct owner *owner, uint32_t mask)
{
    (void)owner, (void)mask;
    for (int i = 0; i < ACCEPTS; i++) {
        struct sockaddr_in address;
        socklen_t length = sizeof address;
        int yes = 1, client = accept4(listener, (struct sockaddr *)&address, &length, SOCK_CLOEXEC);
        if (client < 0)
            return;
        ioctl(client, FIONBIO, &yes);
        begin_session(client);
    }
}

/* UDP */

struct flow {
    struct owner owner; /* of the socket towards the target */
    struct sockaddr_in client;
    int descriptor;
    bool bulk;
    int large; /* large datagrams in a row */
    int64_t last;
    struct flow *next;
};

union segment_message {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof(int))];
};

static struct flow *flows[1 << FLOW_BITS];
static int flow_count;
static int64_t idle, next_sweep;
static char rooms[MESSAGES][STRIDE];
static struct sockaddr_in senders[MESSAGES];
static union segment_message controls[MESSAGES];
static struct iovec vectors[MESSAGES];
static struct mmsghdr messages[MESSAGES];
static size_t segments[MESSAGES]; /* the length of each datagram of a message but the last */

static void lay_out(void)
{
    for (int i = 0; i < MESSAGES; i++) {
        vectors[i] = (struct iovec){rooms[i], DATAGRAM};
        messages[i].msg_hdr = (struct msghdr){.msg_name = &senders[i],
                                              .msg_namelen = sizeof senders[i],
                                              .msg_iov = &vectors[i],
                                              .msg_iovlen = 1,
                                              .msg_control = &controls[i],
                                              .msg_controllen = sizeof controls[i]};
    }
}

static int receive(int descriptor, int most)
{
    int count = recvmmsg(descriptor, messages, most, MSG_DONTWAIT, NULL);
    for (int i = 0; i < count; i++) {
        struct msghdr *header = &messages[i].msg_hdr;
        struct cmsghdr *control = CMSG_FIRSTHDR(header);
        segments[i] = messages[i].msg_len;
        if (control && control->cmsg_level == SOL_UDP && control->cmsg_type == UDP_GRO)
            segments[i] = *(int *)CMSG_DATA(control);
        header->msg_namelen = sizeof senders[i];
        header->msg_controllen = sizeof controls[i];
    }
    return count;
}

static void send_to_target(struct flow *flow, const char *data, size_t length)
{
    /* Refused is the answer to an earlier datagram: this one was not sent. What the kernel does not take is lost. */
    if (write(flow->descriptor, data, length) < 0 && errno == ECONNREFUSED && write(flow->descriptor, data, length) < 0)
        return;
}

static void send_to_client(struct flow *flow, const char *data, size_t length)
{
    sendto(listener, data, length, 0, (struct sockaddr *)&flow->client, sizeof flow->client);
}

/* Send messages that are all of one flow, as many in one call as are of one length. */
static void send_burst(struct flow *flow, bool up, int first, int count, int parts)
{
    struct iovec pieces[MESSAGES];
    union segment_message control = {.header = {CMSG_LEN(sizeof(uint16_t)), SOL_UDP, UDP_SEGMENT}};
    struct msghdr header = {.msg_iov = pieces,
                            .msg_iovlen = count,
                            .msg_control = &control,
                            .msg_controllen = CMSG_SPACE(sizeof(uint16_t))};
    if (parts == 1) {
        (up ? send_to_target : send_to_client)(flow, rooms[first], messages[first].msg_len);
        return;
    }
    for (int i = 0; i < count; i++)
        pieces[i] = (struct iovec){rooms[first + i], messages[first + i].msg_len};
    *(uint16_t *)CMSG_DATA(&control.header) = segments[first];
    if (!up) {
        header.msg_name = &flow->client;
        header.msg_namelen = sizeof flow->client;
    }
    if (sendmsg(up ? flow->descriptor : listener, &header, 0) < 0 && up && errno == ECONNREFUSED)
        sendmsg(flow->descriptor, &header, 0);
}

static void forward(struct flow *flow, bool up, int first, int end)
{
    size_t total = 0;
    int parts = 0;
    for (int i = first; i < end; i++) {
        size_t length = messages[i].msg_len, segment = segments[i], size = segments[first];
        int number = length > segment ? (length + segment - 1) / segment : 1;
        /* Only the last datagram of a burst may be shorter than the others, and none may be empty. */
        bool fits = 0 < segment && segment <= size && size <= MOST_JOINED && total % size == 0 &&
                    (segment == size || number == 1) && total + length <= MOST_BYTES && parts + number <= MOST_PARTS;
        if (parts && !fits) {
            send_burst(flow, up, first, i - first, parts);
            first = i;
            total = parts = 0;
        }
        total += length;
        parts += number;
    }
    if (parts)
        send_burst(flow, up, first, end - first, parts);
}

static void flow_ready(struct owner *owner, uint32_t mask)
{
    struct flow *flow = (struct flow *)owner;
    (void)mask;
    if (!flow->bulk) {
        ssize_t amount = read(flow->descriptor, buffer, DATAGRAM);
        if (amount < 0) /* an ICMP error: the target may be back in a moment */
            return;
        flow->large = amount < LARGE ? 0 : flow->large + 1;
        if (flow->large == LARGE_IN_A_ROW) {
            flow->bulk = true;
            set_option(flow->descriptor, IPPROTO_UDP, UDP_GRO, 1);
        }
        flow->last = batch_time;
        send_to_client(flow, buffer, amount);
        return;
    }
    for (int i = 0; i < ROUNDS; i++) {
        int count = receive(flow->descriptor, BULK_MESSAGES);
        if (count < 0)
            return;
        flow->last = batch_time;
        forward(flow, false, 0, count);
        if (count < BULK_MESSAGES)
            return;
    }
}

static struct flow **bucket_of(const struct sockaddr_in *client)
{
    uint64_t key = (uint64_t)client->sin_addr.s_addr << 16 | client->sin_port;
    return &flows[key * 0x9e3779b97f4a7c15u >> (64 - FLOW_BITS)];
}

static bool is_same(const struct sockaddr_in *one, const struct sockaddr_in *other)
{
    return one->sin_port == other->sin_port && one->sin_addr.s_addr == other->sin_addr.s_addr;
}

/* The flow of a client, a new one where there is none; NULL when there is no room for another. */
static struct flow *flow_of(const struct sockaddr_in *client)
{
    struct flow **bucket = bucket_of(client), *flow = *bucket;
    while (flow && !is_same(&flow->client, client))
        flow = flow->next;
    if (flow)
        return flow;
    int descriptor = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (descriptor < 0)
        return NULL;
    if (connect(descriptor, (struct sockaddr *)&target, sizeof target)) {
        close(descriptor);
        return NULL;
    }
    flow = allocate(1, sizeof *flow);
    *flow = (struct flow){.owner = {flow_ready}, .client = *client, .descriptor = descriptor, .next = *bucket};
    *bucket = flow;
    flow_count++;
    watch(epoll, descriptor, EPOLLIN, flow);
    return flow;
}

static void deliver(int count)
{
    for (int first = 0, end; first < count; first = end) {
        struct flow *flow = flow_of(&senders[first]);
        for (end = first + 1; end < count && is_same(&senders[first], &senders[end]);)
            end++;
        if (flow) {
            flow->last = batch_time;
            forward(flow, true, first, end);
        }
    }
}

static void clients_ready(struct owner *owner, uint32_t mask)
{
    static int most = MESSAGES;
    (void)owner, (void)mask;
    for (int i = 0; i < ROUNDS; i++) {
        int64_t bytes = 0;
        int count = receive(listener, most);
        if (count < 0)
            return;
        deliver(count);
        if (count < most) {
            most = MESSAGES;
            return;
        }
        for (int message = 0; message < count; message++)
            bytes += messages[message].msg_len;
        if (bytes > BUSY && most > 1)
            most /= 2;
    }
}

/* Forget flows that have been idle for too long. Between batches only: their events would be without an owner. */
static void sweep(int64_t time)
{
    if (time < next_sweep)
        return;
    next_sweep = time + SECOND;
    for (int i = 0; i < 1 << FLOW_BITS; i++)
        for (struct flow **place = &flows[i]; *place;) {
            struct flow *flow = *place;
            if (time - flow->last < idle) {
                place = &flow->next;
                continue;
            }
            *place = flow->next;
            close(flow->descriptor);
            free(flow);
            flow_count--;
        }
}

/* Both */

static int listen_to(int kind, int port)
{
    struct sockaddr_in address = loopback(port);
    listener = socket(AF_INET, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    set_option(listener, SOL_SOCKET, SO_REUSEPORT, 1);
    if (kind == SOCK_STREAM) {
        set_option(listener, SOL_SOCKET, SO_REUSEADDR, 1);
        /* Accepted connections have both from it. */
        set_option(listener, SOL_SOCKET, SO_KEEPALIVE, 1);
        set_option(listener, IPPROTO_TCP, TCP_NODELAY, 1);
    } else {
        set_option(listener, IPPROTO_UDP, UDP_GRO, 1);
    }
    if (bind(listener, (struct sockaddr *)&address, sizeof address) ||
        (kind == SOCK_STREAM && listen(listener, BACKLOG)))
        die_errno("listen");
    return listener;
}

int main(int count, char **words)
{
    struct epoll_event events[READY];
    struct owner accepting = {accept_ready}, receiving = {clients_ready};
    int tcp = option(count, words, "--tcp", 0), udp = option(count, words, "--udp", 0);

    if (count == 2 && !strcmp(words[1], "--version")) {
        say(__VERSION__);
        return 0;
    }
    prepare_process();
    target = loopback(option(count, words, "--target", 0));
    idle = option(count, words, "--idle", 120) * SECOND;
    epoll = epoll_create1(EPOLL_CLOEXEC);
    lay_out();
    if (tcp)
        watch(epoll, listen_to(SOCK_STREAM, tcp), EPOLLIN, &accepting);
    else
        watch(epoll, listen_to(SOCK_DGRAM, udp), EPOLLIN, &receiving);

    for (;;) {
        int ready = epoll_wait(epoll, events, READY, turns ? 0 : flow_count ? 1000 : -1);
        batch_time = now();
        for (int i = 0; i < ready; i++) {
            struct owner *owner = events[i].data.ptr;
            owner->ready(owner, events[i].events);
        }
        close_finished();
        take_turns();
        close_finished();
        if (flow_count)
            sweep(batch_time);
    }
}
